-- Every scenario with its last attempt.
CREATE OR REPLACE FUNCTION overview()
RETURNS TABLE (id bigint, status text, outcome text, epoch bigint, next_frame bigint, frames_stored bigint,
               total_frames bigint, failures integer, max_failures integer, last_epoch bigint, node text,
               instance_id uuid, lease_seconds double precision, due_seconds double precision, last_error jsonb,
               video_path text, runner_id text, frames_not_inferred bigint, frames_per_second double precision)
LANGUAGE sql AS $$
SELECT s.id, s.status, s.outcome, s.epoch, s.next_frame, s.frames_stored, s.total_frames, s.failures, s.max_failures,
       s.last_epoch, s.node, s.instance_id, extract(epoch FROM s.lease_until - clock_timestamp())::float8,
       extract(epoch FROM s.not_before - clock_timestamp())::float8, s.last_error, s.video_path, a.runner_id,
       (SELECT count(*) FROM predictions p WHERE p.scenario_id = s.id AND p.error IS NOT NULL),
       ((coalesce(a.end_frame, s.next_frame) - a.first_frame)
         / nullif(extract(epoch FROM coalesce(a.ended_at, clock_timestamp()) - a.started_at), 0))::float8
  FROM scenarios s
  LEFT JOIN LATERAL (SELECT * FROM attempts WHERE scenario_id = s.id ORDER BY epoch DESC LIMIT 1) a ON true
 ORDER BY s.id
$$;
