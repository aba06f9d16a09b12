-- Give the caller the deaths whose retry events are due to be published, the longest due first: of every scenario, or of one.
-- No other caller is given them before the lease has ended, so processes that ask at once share the work.
CREATE OR REPLACE FUNCTION unpublished(p_limit integer, p_lease interval, p_scenario bigint)
RETURNS TABLE (scenario_id bigint, epoch bigint)
LANGUAGE sql AS $$
WITH chosen AS (
    SELECT u.scenario_id, u.epoch FROM unpublished_events u
     WHERE u.publish_due <= now() AND (p_scenario IS NULL OR u.scenario_id = p_scenario)
     ORDER BY u.publish_due LIMIT p_limit FOR UPDATE SKIP LOCKED
)
UPDATE retry_events e SET publish_due = clock_timestamp() + p_lease
  FROM chosen WHERE e.scenario_id = chosen.scenario_id AND e.epoch = chosen.epoch
RETURNING e.scenario_id, e.epoch
$$;
