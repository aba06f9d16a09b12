-- Which deaths Kafka has been told of. Who dies between the ledger and Kafka leaves one that it has not, for a reaper.

-- What was recorded before this file is old news.
ALTER TABLE retry_events ADD COLUMN published_at timestamptz DEFAULT now();
ALTER TABLE retry_events ALTER COLUMN published_at DROP DEFAULT;
-- Whoever recorded the death will not publish its event: anybody may, at once.
ALTER TABLE retry_events ADD COLUMN handed_over boolean NOT NULL DEFAULT false;
CREATE INDEX retry_events_unpublished ON retry_events (received_at) WHERE published_at IS NULL;

-- Kafka has acknowledged the event of this death.
CREATE FUNCTION mark_published(p_id bigint, p_epoch bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
UPDATE retry_events SET published_at = clock_timestamp() WHERE scenario_id = p_id AND epoch = p_epoch AND published_at IS NULL
$$;

-- Whoever recorded this death could not publish its event: anybody may, from now on.
CREATE FUNCTION hand_over(p_id bigint, p_epoch bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
UPDATE retry_events SET handed_over = true WHERE scenario_id = p_id AND epoch = p_epoch AND published_at IS NULL
$$;

-- The deaths that Kafka has yet to hear of. Of a takeover nobody need be told, once the next attempt, which recorded it,
-- has begun.
CREATE VIEW unpublished_events AS
SELECT e.* FROM retry_events e
 WHERE e.published_at IS NULL
   AND (e.reporter <> 'takeover'
        OR NOT EXISTS (SELECT FROM attempts a WHERE a.scenario_id = e.scenario_id AND a.epoch > e.epoch));

-- Those that whoever recorded them has had p_age to tell, and has not; a reaper's own are told by any reaper, at once.
CREATE FUNCTION unpublished(p_age interval, p_limit integer)
RETURNS TABLE (scenario_id bigint, epoch bigint)
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
SELECT e.scenario_id, e.epoch FROM unpublished_events e
 WHERE e.reporter = 'reaper' OR e.handed_over OR e.received_at < clock_timestamp() - p_age
 ORDER BY e.received_at LIMIT p_limit
$$;

-- Take a scenario. p_epoch = 0 (started by hand) creates a missing row and takes whichever attempt is free, without
-- regard to not_before; a scenario without a single stored frame may then get another video, so that a mistyped path does
-- not spend its id. What somebody has stopped stays so, under any path. A runner started for one epoch claims that
-- epoch or nothing. Whoever wants to take over a claim whose lease has ended records that attempt's death first (fail).
CREATE OR REPLACE FUNCTION claim(p_id bigint, p_video text, p_epoch bigint, p_instance uuid, p_runner text, p_host text,
                      p_lease interval, p_max_failures integer, p_identity text, p_sampling text)
RETURNS TABLE (claimed_epoch bigint, claimed_next_frame bigint, claimed_frames_stored bigint, claimed_identity text,
               claimed_sampling text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
DECLARE s scenarios;
BEGIN
    IF p_epoch = 0 THEN
        INSERT INTO scenarios (id, video_path, max_failures) VALUES (p_id, p_video, p_max_failures)
        ON CONFLICT DO NOTHING;
    END IF;
    SELECT * INTO s FROM scenarios WHERE id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'scenario % does not exist', p_id USING ERRCODE = 'RN006';
    ELSIF s.instance_id = p_instance THEN
        -- It is the caller's already: the reply to its claim was lost.
        RETURN QUERY SELECT s.epoch, s.next_frame, s.frames_stored, s.video_identity, s.sampling;
        RETURN;
    ELSIF s.outcome = 'completed' THEN
        RAISE EXCEPTION 'scenario % is completed: % frames stored', p_id, s.frames_stored USING ERRCODE = 'RN002';
    ELSIF s.video_path <> p_video AND p_epoch = 0 AND s.frames_stored = 0 AND s.instance_id IS NULL
          AND (s.status = 'init_startup' OR s.outcome = 'failed') THEN
        UPDATE scenarios SET video_path = p_video, status = 'init_startup', outcome = NULL, failures = 0,
                             max_failures = p_max_failures WHERE id = p_id;
    ELSIF s.video_path <> p_video THEN
        RAISE EXCEPTION 'scenario % belongs to another video: %', p_id, s.video_path USING ERRCODE = 'RN003';
    ELSIF s.outcome = 'failed' THEN
        RAISE EXCEPTION 'scenario % was given up: %; to try again: trio-runner retry CONFIG %',
            p_id, s.last_error ->> 'code', p_id USING ERRCODE = 'RN004';
    ELSIF s.status IN ('init_shutdown', 'in_shutdown_processing', 'inactive') THEN
        RAISE EXCEPTION 'scenario % is %', p_id, s.status USING ERRCODE = 'RN004';
    ELSIF p_epoch <> 0 AND (p_epoch <> s.epoch OR s.instance_id IS NOT NULL) THEN
        RAISE EXCEPTION 'attempt % of scenario % is taken or over; it is at attempt %', p_epoch, p_id, s.epoch
            USING ERRCODE = 'RN005';
    ELSIF s.instance_id IS NOT NULL THEN
        RAISE EXCEPTION 'scenario % is being processed by another runner, whose lease ends in % s', p_id,
            ceil(extract(epoch FROM s.lease_until - clock_timestamp())) USING ERRCODE = 'RN001';
    END IF;
    INSERT INTO attempts (scenario_id, epoch, runner_id, instance_id, host, first_frame)
    VALUES (p_id, s.epoch, p_runner, p_instance, p_host, s.next_frame);
    UPDATE scenarios SET status = 'in_startup_processing', instance_id = p_instance,
                         lease_until = clock_timestamp() + p_lease,
                         video_identity = CASE WHEN frames_stored = 0 THEN coalesce(p_identity, video_identity)
                                               ELSE coalesce(video_identity, p_identity) END,
                         sampling = CASE WHEN frames_stored = 0 THEN coalesce(p_sampling, sampling)
                                         ELSE coalesce(sampling, p_sampling) END
     WHERE id = p_id RETURNING * INTO s;
    RETURN QUERY SELECT s.epoch, s.next_frame, s.frames_stored, s.video_identity, s.sampling;
END $$;

-- As before; what somebody is at, another reaper or the runner itself, holds nobody up. now() and not clock_timestamp(),
-- which no index is searched by.
CREATE OR REPLACE FUNCTION expired_claims(p_limit integer)
RETURNS TABLE (scenario_id bigint, epoch bigint, instance_id uuid, next_frame bigint, frames_stored bigint, runner_id text,
               host text)
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
SELECT s.id, s.epoch, s.instance_id, s.next_frame, s.frames_stored, a.runner_id, a.host
  FROM scenarios s JOIN attempts a ON a.scenario_id = s.id AND a.epoch = s.epoch
 WHERE s.lease_until < now() ORDER BY s.lease_until LIMIT p_limit FOR UPDATE OF s SKIP LOCKED
$$;

-- In the place of recorded_event: what Kafka has acknowledged need not be said again.
DROP FUNCTION recorded_event(bigint, bigint);
CREATE FUNCTION unpublished_event(p_id bigint, p_epoch bigint) RETURNS text
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
SELECT e.body::text FROM unpublished_events e WHERE e.scenario_id = p_id AND e.epoch = p_epoch
$$;

-- As before; of a process that was reaped and has claimed again, its last attempt.
DROP FUNCTION attempt_of(bigint, uuid);
CREATE FUNCTION attempt_of(p_instance uuid)
RETURNS TABLE (scenario_id bigint, epoch bigint, ended boolean, next_frame bigint, frames_stored bigint)
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
SELECT a.scenario_id, a.epoch, a.ended_at IS NOT NULL, s.next_frame, s.frames_stored
  FROM attempts a JOIN scenarios s ON s.id = a.scenario_id
 WHERE a.instance_id = p_instance ORDER BY a.started_at DESC LIMIT 1
$$;
CREATE INDEX attempts_instance ON attempts (instance_id);

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA trio_runner FROM PUBLIC;
