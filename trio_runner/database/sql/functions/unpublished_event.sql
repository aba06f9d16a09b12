-- The retry event of this attempt's death, if Kafka has not acknowledged it.
CREATE OR REPLACE FUNCTION unpublished_event(p_id bigint, p_epoch bigint) RETURNS text
LANGUAGE sql AS $$
SELECT e.body::text FROM unpublished_events e WHERE e.scenario_id = p_id AND e.epoch = p_epoch
$$;
