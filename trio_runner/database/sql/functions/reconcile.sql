-- Note that Kafka has these deaths. Returns those of them that the ledger does not know although the process had claimed.
CREATE OR REPLACE FUNCTION reconcile(p_ids bigint[], p_epochs bigint[], p_instances uuid[])
RETURNS TABLE (scenario_id bigint, epoch bigint)
LANGUAGE sql AS $$
WITH reported AS (
    SELECT a.scenario_id, a.epoch, a.ended_at FROM unnest(p_ids, p_epochs, p_instances) AS u(id, epoch, instance)
      JOIN attempts a ON a.scenario_id = u.id AND a.epoch = u.epoch AND a.instance_id = u.instance
), marked AS (
    UPDATE retry_events e SET published_at = clock_timestamp() FROM reported
     WHERE e.scenario_id = reported.scenario_id AND e.epoch = reported.epoch AND e.published_at IS NULL
)
SELECT DISTINCT reported.scenario_id, reported.epoch FROM reported WHERE reported.ended_at IS NULL
$$;
