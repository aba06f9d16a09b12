-- Deaths that nobody has reported, found by whoever is left; and what a scenario's rows were made from.

-- Of the first claim, and of a later one as long as nothing is stored: what identifies the video's content, and which of
-- its frames are chosen. A claim hands them out; a runner whose own differ would mix two things in one table.
ALTER TABLE scenarios ADD COLUMN video_identity text, ADD COLUMN sampling text;

DROP FUNCTION claim(bigint, text, bigint, uuid, text, text, interval, integer);

-- Take a scenario. p_epoch = 0 (started by hand) creates a missing row and takes whichever attempt is free, without
-- regard to not_before; a scenario without a single stored frame may then get another video, so that a mistyped path does
-- not spend its id. A runner started for one epoch claims that epoch or nothing. Whoever wants to take over a claim
-- whose lease has ended records that attempt's death first (fail).
CREATE FUNCTION claim(p_id bigint, p_video text, p_epoch bigint, p_instance uuid, p_runner text, p_host text,
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
          AND s.status IN ('init_startup', 'inactive') THEN
        UPDATE scenarios SET video_path = p_video, status = 'init_startup', outcome = NULL, failures = 0,
                             max_failures = p_max_failures WHERE id = p_id;
    ELSIF s.video_path <> p_video THEN
        RAISE EXCEPTION 'scenario % belongs to another video: %', p_id, s.video_path USING ERRCODE = 'RN003';
    ELSIF s.outcome = 'failed' THEN
        RAISE EXCEPTION 'scenario % was given up: %; to try again: UPDATE trio_runner.scenarios SET status = ''init_startup'', outcome = NULL, failures = 0 WHERE id = %',
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

-- Record a death, release the claim, open the next attempt. The first report of an epoch's death wins; a repeated,
-- stale or foreign one changes nothing and returns false, and so does one that knows of the death by the lease alone when
-- the lease has been renewed. What counts is failing without progress: an attempt that stored something sets the count to
-- 0, an interrupted one leaves it, a permanent failure is the last.
CREATE OR REPLACE FUNCTION fail(p_id bigint, p_epoch bigint, p_instance uuid, p_event uuid, p_reporter text, p_class text,
                                p_body jsonb, p_retry_after interval DEFAULT '0 s')
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
DECLARE s scenarios; counted integer; given_up boolean; progressed boolean;
BEGIN
    SELECT * INTO s FROM scenarios WHERE id = p_id FOR UPDATE;
    IF NOT FOUND OR s.outcome IS NOT NULL OR s.epoch <> p_epoch OR s.instance_id IS DISTINCT FROM p_instance
       OR (p_reporter IN ('takeover', 'reaper') AND s.lease_until >= clock_timestamp()) THEN
        RETURN false;
    END IF;
    SELECT s.next_frame > a.first_frame INTO progressed FROM attempts a WHERE a.scenario_id = p_id AND a.epoch = p_epoch;
    counted := CASE WHEN p_class = 'interrupted' THEN s.failures WHEN progressed THEN 0 ELSE s.failures + 1 END;
    given_up := p_class = 'permanent' OR counted >= s.max_failures;
    INSERT INTO retry_events (scenario_id, epoch, event_id, reporter, body)
    VALUES (p_id, p_epoch, p_event, p_reporter, p_body);
    UPDATE attempts
       SET ended_at = clock_timestamp(), end_frame = s.next_frame, error = p_body -> 'error',
           outcome = CASE WHEN p_class = 'interrupted' THEN 'interrupted' WHEN p_reporter = 'runner' THEN 'failed'
                          ELSE 'lost' END
     WHERE scenario_id = p_id AND epoch = p_epoch;
    UPDATE scenarios
       SET epoch = s.epoch + 1, instance_id = NULL, lease_until = NULL, failures = counted,
           last_error = p_body -> 'error',
           -- A shutdown that somebody has asked for meanwhile goes on, and one that is through stays so.
           status = CASE WHEN given_up THEN 'inactive'
                         WHEN s.status IN ('init_shutdown', 'in_shutdown_processing', 'inactive') THEN s.status
                         ELSE 'init_startup' END,
           outcome = CASE WHEN given_up THEN 'failed' END,
           -- Exponential with full jitter (random up to 2^n seconds, at most 5 minutes), so that a fleet that fell
           -- together does not rise together; an interrupted attempt may go on at once.
           not_before = clock_timestamp() + CASE WHEN p_class = 'interrupted' THEN interval '0 s' ELSE
               greatest(p_retry_after, make_interval(secs => random() * least(300, power(2, least(counted, 12))))) END
     WHERE id = p_id;
    RETURN true;
END $$;

-- The video's end was reached and every selected frame is stored.
CREATE OR REPLACE FUNCTION finish(p_id bigint, p_epoch bigint, p_instance uuid, p_total bigint, p_status text)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
BEGIN
    UPDATE scenarios
       SET outcome = 'completed', total_frames = p_total, failures = 0, last_error = NULL,
           status = CASE WHEN status IN ('init_shutdown', 'in_shutdown_processing', 'inactive') THEN status
                         ELSE p_status END,
           instance_id = NULL, lease_until = NULL
     WHERE id = p_id AND epoch = p_epoch AND instance_id = p_instance AND frames_stored = p_total;
    IF NOT FOUND THEN PERFORM refuse(p_id, p_epoch, p_instance); END IF;
    UPDATE attempts a SET ended_at = clock_timestamp(), outcome = 'completed', end_frame = s.next_frame
      FROM scenarios s WHERE s.id = p_id AND a.scenario_id = p_id AND a.epoch = p_epoch;
END $$;

-- The claims of runners that were not heard of until their leases ended, the oldest first: what a reaper is to report.
CREATE FUNCTION expired_claims(p_limit integer)
RETURNS TABLE (scenario_id bigint, epoch bigint, instance_id uuid, next_frame bigint, frames_stored bigint, runner_id text,
               host text)
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
SELECT s.id, s.epoch, s.instance_id, s.next_frame, s.frames_stored, a.runner_id, a.host
  FROM scenarios s JOIN attempts a ON a.scenario_id = s.id AND a.epoch = s.epoch
 WHERE s.lease_until < clock_timestamp() ORDER BY s.lease_until LIMIT p_limit
$$;

-- The attempt of one process: which it was, and whether its end is recorded. No row: it never claimed.
CREATE FUNCTION attempt_of(p_id bigint, p_instance uuid)
RETURNS TABLE (epoch bigint, ended boolean, next_frame bigint, frames_stored bigint)
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
SELECT a.epoch, a.ended_at IS NOT NULL, s.next_frame, s.frames_stored
  FROM attempts a JOIN scenarios s ON s.id = a.scenario_id
 WHERE a.scenario_id = p_id AND a.instance_id = p_instance
$$;

-- What the ledger was told of an attempt's death: for a report whose sender died between the ledger and Kafka.
CREATE FUNCTION recorded_event(p_id bigint, p_epoch bigint) RETURNS text
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
SELECT body::text FROM retry_events WHERE scenario_id = p_id AND epoch = p_epoch
$$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA trio_runner FROM PUBLIC;
