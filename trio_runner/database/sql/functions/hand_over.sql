-- Note that these deaths' events will not be published by the process that had them: any process may, from now on.
CREATE OR REPLACE FUNCTION hand_over(p_ids bigint[], p_epochs bigint[]) RETURNS void
LANGUAGE sql AS $$
UPDATE retry_events e SET publish_due = clock_timestamp() FROM unnest(p_ids, p_epochs) AS u(id, epoch)
 WHERE e.scenario_id = u.id AND e.epoch = u.epoch AND e.published_at IS NULL
$$;
