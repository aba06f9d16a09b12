-- A runner's role calls the verbs and reads which of these files are applied; it has no right to any table. So the verbs
-- run as the owner of this schema, with a search path of their own: whoever calls them may have set another, or have put
-- a temporary table of the same name in front of ours, unless pg_temp is named and comes last.

-- The claim of a runner that was not heard of until its lease ended, and who that was.
CREATE FUNCTION expired_claim(p_id bigint)
RETURNS TABLE (epoch bigint, instance_id uuid, next_frame bigint, frames_stored bigint, runner_id text, host text)
LANGUAGE sql AS $$
SELECT s.epoch, s.instance_id, s.next_frame, s.frames_stored, a.runner_id, a.host
  FROM scenarios s JOIN attempts a ON a.scenario_id = s.id AND a.epoch = s.epoch
 WHERE s.id = p_id AND s.lease_until < clock_timestamp()
$$;

-- Whether this very attempt completed its scenario.
CREATE FUNCTION is_completed(p_id bigint, p_epoch bigint) RETURNS boolean LANGUAGE sql AS $$
SELECT EXISTS (SELECT FROM scenarios s WHERE s.id = p_id AND s.epoch = p_epoch AND s.outcome = 'completed')
$$;

-- What was found, for the summary at the end of a run: labels, boxes, and frames with at least one such box.
CREATE FUNCTION label_counts(p_id bigint) RETURNS TABLE (label text, boxes bigint, frames bigint) LANGUAGE sql AS $$
SELECT d.label, count(*), count(DISTINCT d.frame_index)
  FROM detections d WHERE d.scenario_id = p_id GROUP BY d.label ORDER BY 2 DESC, 1
$$;

-- A scenario without a frame is not completed: nothing was proven by it.
ALTER TABLE scenarios ADD CHECK (outcome IS DISTINCT FROM 'completed' OR total_frames > 0);

ALTER FUNCTION claim SECURITY DEFINER SET search_path = trio_runner, pg_temp;
ALTER FUNCTION store SECURITY DEFINER SET search_path = trio_runner, pg_temp;
ALTER FUNCTION heartbeat SECURITY DEFINER SET search_path = trio_runner, pg_temp;
ALTER FUNCTION finish SECURITY DEFINER SET search_path = trio_runner, pg_temp;
ALTER FUNCTION fail SECURITY DEFINER SET search_path = trio_runner, pg_temp;
ALTER FUNCTION expired_claim SECURITY DEFINER SET search_path = trio_runner, pg_temp;
ALTER FUNCTION is_completed SECURITY DEFINER SET search_path = trio_runner, pg_temp;
ALTER FUNCTION label_counts SECURITY DEFINER SET search_path = trio_runner, pg_temp;

-- These two are called by the verbs and the table, as the owner already.
ALTER FUNCTION refuse SET search_path = trio_runner, pg_temp;
ALTER FUNCTION guard_scenario SET search_path = trio_runner, pg_temp;

-- By default everybody may call a new function. Each later file that makes one has to do this again.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA trio_runner FROM PUBLIC;
