-- The claims whose leases have ended, the oldest first, for a reaper to report. A row that is locked, by another reaper or by
-- the runner itself, is skipped. The condition uses now() because an index cannot be searched by clock_timestamp().
CREATE OR REPLACE FUNCTION expired_claims(p_limit integer)
RETURNS TABLE (scenario_id bigint, epoch bigint, instance_id uuid, next_frame bigint, frames_stored bigint, runner_id text,
               host text)
LANGUAGE sql AS $$
SELECT s.id, s.epoch, s.instance_id, s.next_frame, s.frames_stored, a.runner_id, a.host
  FROM scenarios s JOIN attempts a ON a.scenario_id = s.id AND a.epoch = s.epoch
 WHERE s.lease_until < now() ORDER BY s.lease_until LIMIT p_limit FOR UPDATE OF s SKIP LOCKED
$$;
