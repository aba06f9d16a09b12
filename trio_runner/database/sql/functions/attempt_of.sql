-- The last attempt of one process, which may have worked on several scenarios in turn, and whether its end is recorded. No
-- row means that the process never claimed.
CREATE OR REPLACE FUNCTION attempt_of(p_instance uuid)
RETURNS TABLE (scenario_id bigint, epoch bigint, ended boolean, next_frame bigint, frames_stored bigint)
LANGUAGE sql AS $$
SELECT a.scenario_id, a.epoch, a.ended_at IS NOT NULL, s.next_frame, s.frames_stored
  FROM attempts a JOIN scenarios s ON s.id = a.scenario_id
 WHERE a.instance_id = p_instance ORDER BY a.started_at DESC LIMIT 1
$$;
