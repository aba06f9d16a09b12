-- The claim on this scenario if its lease has ended, and whose it was.
CREATE OR REPLACE FUNCTION expired_claim(p_id bigint)
RETURNS TABLE (epoch bigint, instance_id uuid, next_frame bigint, frames_stored bigint, runner_id text, host text)
LANGUAGE sql AS $$
SELECT s.epoch, s.instance_id, s.next_frame, s.frames_stored, a.runner_id, a.host
  FROM scenarios s JOIN attempts a ON a.scenario_id = s.id AND a.epoch = s.epoch
 WHERE s.id = p_id AND s.lease_until < clock_timestamp()
$$;
