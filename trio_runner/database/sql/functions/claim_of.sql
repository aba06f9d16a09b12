-- The video of a scenario, and who claimed that epoch of it, if anybody has, and whether the end of that attempt is recorded.
CREATE OR REPLACE FUNCTION claim_of(p_id bigint, p_epoch bigint)
RETURNS TABLE (video_path text, instance_id uuid, next_frame bigint, frames_stored bigint, runner_id text, ended boolean)
LANGUAGE sql AS $$
SELECT s.video_path, a.instance_id, s.next_frame, s.frames_stored, a.runner_id, a.ended_at IS NOT NULL
  FROM scenarios s LEFT JOIN attempts a ON a.scenario_id = s.id AND a.epoch = p_epoch WHERE s.id = p_id
$$;
