-- Take a scenario for one process, and open its attempt. A runner that was started for one epoch claims that epoch or
-- nothing. p_epoch = 0 means that the runner was started by hand: a missing row is created, and the attempt that is free is
-- taken, without regard to not_before. Such a runner may also give another video to a scenario without a single stored
-- frame, so that a mistyped path does not use up its id; but a scenario that was stopped stays stopped, under any path.
-- To take over a claim whose lease has ended, the caller records the death of that attempt first, with fail().
CREATE OR REPLACE FUNCTION claim(p_id bigint, p_video text, p_epoch bigint, p_instance uuid, p_runner text, p_host text,
                                 p_lease interval, p_max_failures integer, p_identity text, p_sampling jsonb,
                                 p_retry_topic text DEFAULT NULL)
RETURNS TABLE (claimed_epoch bigint, claimed_next_frame bigint, claimed_frames_stored bigint, claimed_identity text,
               claimed_sampling jsonb, claimed_last_pts double precision, claimed_frames_not_inferred bigint)
LANGUAGE plpgsql AS $$
DECLARE s scenarios; last_pts double precision; not_inferred bigint;
BEGIN
    IF p_epoch = 0 THEN
        INSERT INTO scenarios (id, video_path, max_failures) VALUES (p_id, p_video, p_max_failures)
        ON CONFLICT DO NOTHING;
    END IF;
    SELECT * INTO s FROM scenarios WHERE id = p_id FOR UPDATE;
    -- Assignments leave FOUND as it is. The runner seeks from `last_pts`, the presentation time of the last stored frame.
    -- `inference.max_failed_frames` holds over all attempts, so the runner must know `not_inferred`.
    not_inferred := (SELECT count(*) FROM predictions p WHERE p.scenario_id = p_id AND p.error IS NOT NULL);
    last_pts := (SELECT p.pts_seconds FROM predictions p WHERE p.scenario_id = p_id AND p.frame_index = s.next_frame - 1);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'scenario % does not exist', p_id USING ERRCODE = 'RN006';
    ELSIF s.instance_id = p_instance THEN
        -- The caller holds this claim already: the reply to its first call was lost, or its video, which was fetched under
        -- this claim, has an identity by now.
        IF s.frames_stored = 0 THEN
            UPDATE scenarios SET video_identity = coalesce(p_identity, s.video_identity) WHERE id = p_id RETURNING * INTO s;
        END IF;
        RETURN QUERY SELECT s.epoch, s.next_frame, s.frames_stored, s.video_identity, s.sampling, last_pts, not_inferred;
        RETURN;
    ELSIF s.outcome = 'completed' THEN
        RAISE EXCEPTION 'scenario % is completed: % frames stored', p_id, s.frames_stored USING ERRCODE = 'RN002';
    ELSIF EXISTS (SELECT FROM attempts a WHERE a.scenario_id = p_id AND a.instance_id = p_instance) THEN
        -- One process makes one attempt. Two reports of one death, both of which found no claim, would count it twice.
        RAISE EXCEPTION 'the attempt that this process made at scenario % is over', p_id USING ERRCODE = 'RN005';
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
        RAISE EXCEPTION 'scenario % is being processed by another runner, whose lease ends in % s. If that runner is '
            'dead, run again then, or let `trio-runner reap CONFIG` report it', p_id,
            ceil(extract(epoch FROM s.lease_until - clock_timestamp())) USING ERRCODE = 'RN001';
    END IF;
    INSERT INTO attempts (scenario_id, epoch, runner_id, instance_id, host, retry_topic, first_frame)
    VALUES (p_id, s.epoch, p_runner, p_instance, p_host, p_retry_topic, s.next_frame);
    UPDATE scenarios SET status = 'in_startup_processing', instance_id = p_instance,
                         lease_until = clock_timestamp() + p_lease,
                         video_identity = CASE WHEN frames_stored = 0 THEN coalesce(p_identity, video_identity)
                                               ELSE coalesce(video_identity, p_identity) END,
                         sampling = CASE WHEN frames_stored = 0 THEN coalesce(p_sampling, sampling)
                                         ELSE coalesce(sampling, p_sampling) END
     WHERE id = p_id RETURNING * INTO s;
    RETURN QUERY SELECT s.epoch, s.next_frame, s.frames_stored, s.video_identity, s.sampling, last_pts, not_inferred;
END $$;
