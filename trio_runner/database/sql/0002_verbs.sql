-- claim, finish and fail as they stand here are replaced in 0004, claim and expired_claims again in 0005.
--
-- What may be done to the ledger, each verb one statement for its caller. The fence lies here, in the resource, and
-- not in the client: a runner that was frozen past its lease and wakes up is refused by the row itself.
--
-- Refusals: RN001 owned by a living runner, RN002 completed, RN003 another video, RN004 not to be run (any more),
-- RN005 superseded, RN006 no such scenario, RN007 progress is not where the caller left it. RN009 comes from the guard of
-- the table itself: nothing goes backwards.

-- Take a scenario. p_epoch = 0 (started by hand) creates a missing row and takes whichever attempt is free, without
-- regard to not_before; a scenario without a single stored frame may then get another video, so that a mistyped path does
-- not spend its id. A runner started for one epoch claims that epoch or nothing. Whoever wants to take over a claim
-- whose lease has ended records that attempt's death first (fail).
CREATE FUNCTION claim(p_id bigint, p_video text, p_epoch bigint, p_instance uuid, p_runner text, p_host text,
                      p_lease interval, p_max_failures integer)
RETURNS TABLE (claimed_epoch bigint, claimed_next_frame bigint, claimed_frames_stored bigint)
LANGUAGE plpgsql AS $$
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
        RETURN QUERY SELECT s.epoch, s.next_frame, s.frames_stored;
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
                         lease_until = clock_timestamp() + p_lease
     WHERE id = p_id;
    RETURN QUERY SELECT s.epoch, s.next_frame, s.frames_stored;
END $$;

-- Predictions, progress, lease and status together. The first stored batch is what makes a scenario active.
CREATE FUNCTION store(p_id bigint, p_epoch bigint, p_instance uuid, p_lease interval, p_expected_frame bigint,
                      p_frames bigint[], p_pts double precision[], p_detections jsonb[], p_inference_ms real[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE scenarios
       SET next_frame = p_frames[cardinality(p_frames)] + 1, frames_stored = frames_stored + cardinality(p_frames),
           status = CASE status WHEN 'in_startup_processing' THEN 'active' ELSE status END,
           lease_until = clock_timestamp() + p_lease
     WHERE id = p_id AND epoch = p_epoch AND instance_id = p_instance AND next_frame = p_expected_frame;
    IF NOT FOUND THEN PERFORM refuse(p_id, p_epoch, p_instance); END IF;
    INSERT INTO predictions (scenario_id, frame_index, epoch, pts_seconds, detections, inference_ms)
    SELECT p_id, u.frame, p_epoch, u.pts, u.found, u.ms
      FROM unnest(p_frames, p_pts, p_detections, p_inference_ms) AS u(frame, pts, found, ms);
END $$;

CREATE FUNCTION heartbeat(p_id bigint, p_epoch bigint, p_instance uuid, p_lease interval)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE scenarios SET lease_until = clock_timestamp() + p_lease
     WHERE id = p_id AND epoch = p_epoch AND instance_id = p_instance;
    IF NOT FOUND THEN PERFORM refuse(p_id, p_epoch, p_instance); END IF;
END $$;

-- The video's end was reached and every selected frame is stored.
CREATE FUNCTION finish(p_id bigint, p_epoch bigint, p_instance uuid, p_total bigint, p_status text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE scenarios
       SET outcome = 'completed', total_frames = p_total, failures = 0, last_error = NULL,
           status = CASE WHEN status IN ('init_shutdown', 'in_shutdown_processing') THEN status ELSE p_status END,
           instance_id = NULL, lease_until = NULL
     WHERE id = p_id AND epoch = p_epoch AND instance_id = p_instance AND frames_stored = p_total;
    IF NOT FOUND THEN PERFORM refuse(p_id, p_epoch, p_instance); END IF;
    UPDATE attempts a SET ended_at = clock_timestamp(), outcome = 'completed', end_frame = s.next_frame
      FROM scenarios s WHERE s.id = p_id AND a.scenario_id = p_id AND a.epoch = p_epoch;
END $$;

-- Record a death, release the claim, open the next attempt. The first report of an epoch's death wins; a repeated,
-- stale or foreign one changes nothing and returns false. What counts is failing without progress: an attempt that
-- stored something sets the count to 0, an interrupted one leaves it, a permanent failure is the last.
CREATE FUNCTION fail(p_id bigint, p_epoch bigint, p_instance uuid, p_event uuid, p_reporter text, p_class text,
                     p_body jsonb, p_retry_after interval DEFAULT '0 s')
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE s scenarios; counted integer; given_up boolean; progressed boolean;
BEGIN
    SELECT * INTO s FROM scenarios WHERE id = p_id FOR UPDATE;
    IF NOT FOUND OR s.outcome IS NOT NULL OR s.epoch <> p_epoch OR s.instance_id IS DISTINCT FROM p_instance THEN
        RETURN false;
    END IF;
    SELECT s.next_frame > a.first_frame INTO progressed FROM attempts a WHERE a.scenario_id = p_id AND a.epoch = p_epoch;
    counted := CASE WHEN p_class = 'interrupted' THEN s.failures WHEN progressed THEN 0 ELSE s.failures + 1 END;
    given_up := p_class = 'permanent' OR counted >= s.max_failures;
    INSERT INTO retry_events (scenario_id, epoch, event_id, reporter, body)
    VALUES (p_id, p_epoch, p_event, p_reporter, p_body);
    UPDATE attempts
       SET ended_at = clock_timestamp(), end_frame = s.next_frame, error = p_body -> 'error',
           outcome = CASE WHEN p_reporter IN ('takeover', 'reaper') THEN 'lost'
                          WHEN p_class = 'interrupted' THEN 'interrupted' ELSE 'failed' END
     WHERE scenario_id = p_id AND epoch = p_epoch;
    UPDATE scenarios
       SET epoch = s.epoch + 1, instance_id = NULL, lease_until = NULL, failures = counted,
           last_error = p_body -> 'error',
           -- A shutdown that somebody has asked for meanwhile goes on.
           status = CASE WHEN given_up THEN 'inactive'
                         WHEN s.status IN ('init_shutdown', 'in_shutdown_processing') THEN s.status
                         ELSE 'init_startup' END,
           outcome = CASE WHEN given_up THEN 'failed' END,
           -- Exponential with full jitter (random up to 2^n seconds, at most 5 minutes), so that a fleet that fell
           -- together does not rise together; an interrupted attempt may go on at once.
           not_before = clock_timestamp() + CASE WHEN p_class = 'interrupted' THEN interval '0 s' ELSE
               greatest(p_retry_after, make_interval(secs => random() * least(300, power(2, least(counted, 12))))) END
     WHERE id = p_id;
    RETURN true;
END $$;

CREATE FUNCTION refuse(p_id bigint, p_epoch bigint, p_instance uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE s scenarios;
BEGIN
    SELECT * INTO s FROM scenarios WHERE id = p_id;
    IF s.epoch = p_epoch AND s.instance_id = p_instance THEN
        RAISE EXCEPTION 'scenario % has % frames stored up to frame %: not where this runner left it',
            p_id, s.frames_stored, s.next_frame USING ERRCODE = 'RN007';
    END IF;
    RAISE EXCEPTION 'attempt % of scenario % is over; it is at attempt %', p_epoch, p_id, s.epoch
        USING ERRCODE = 'RN005';
END $$;
