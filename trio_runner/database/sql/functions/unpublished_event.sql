-- The retry event of this attempt's death, and the topic that its runner was configured with, if Kafka has not acknowledged it.
CREATE OR REPLACE FUNCTION unpublished_event(p_id bigint, p_epoch bigint) RETURNS TABLE (body text, retry_topic text)
LANGUAGE sql AS $$
SELECT e.body::text, a.retry_topic
  FROM unpublished_events e LEFT JOIN attempts a ON a.scenario_id = e.scenario_id AND a.epoch = e.epoch
 WHERE e.scenario_id = p_id AND e.epoch = p_epoch
$$;
