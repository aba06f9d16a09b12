-- Ask for a scenario to be processed; p_id = 0 asks for a new id. A scenario that runs or waits stays as it is; one that was
-- stopped goes on. A presigned URL that was signed anew takes the old one's place, which may have expired, and is tried now.
CREATE OR REPLACE FUNCTION submit(p_id bigint, p_video text, p_settings jsonb, p_max_failures integer, p_max_epochs integer)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE s scenarios; new_id bigint := p_id;
BEGIN
    LOOP
        IF p_id = 0 THEN
            -- Callers may have taken the next id by naming it themselves; then the loop tries the one after.
            new_id := nextval('scenario_ids');
        END IF;
        INSERT INTO scenarios (id, video_path, settings, max_failures, last_epoch)
        VALUES (new_id, p_video, p_settings, p_max_failures, p_max_epochs) ON CONFLICT DO NOTHING;
        IF FOUND THEN RETURN new_id; END IF;
        EXIT WHEN p_id <> 0;
    END LOOP;
    SELECT * INTO s FROM scenarios WHERE id = p_id FOR UPDATE;
    IF s.outcome = 'completed' THEN
        RAISE EXCEPTION 'scenario % is completed: % frames stored', p_id, s.frames_stored USING ERRCODE = 'RN002';
    ELSIF s.video_path <> p_video AND s.settings = p_settings AND s.instance_id IS NULL AND p_video ~ '^https?://'
          AND split_part(s.video_path, '?', 1) = split_part(p_video, '?', 1) THEN
        -- Stored frames are safe: content other than theirs is refused by its identity when the runner opens it.
        UPDATE scenarios SET video_path = p_video WHERE id = p_id;
        PERFORM retry(p_id, p_max_epochs);
        RETURN p_id;
    ELSIF s.video_path <> p_video OR s.settings <> p_settings THEN
        RAISE EXCEPTION 'scenario % exists with another video or other settings: %, %', p_id, s.video_path, s.settings
            USING ERRCODE = 'RN003';
    ELSIF s.outcome = 'failed' THEN
        RAISE EXCEPTION 'scenario % was given up: %; to try again: trio-runner retry CONFIG %',
            p_id, s.last_error ->> 'code', p_id USING ERRCODE = 'RN004';
    END IF;
    -- A runner that is being stopped ends all the same; its successor starts at once.
    UPDATE scenarios SET status = CASE WHEN instance_id IS NULL THEN 'init_startup'
                                       WHEN next_frame > 0 THEN 'active' ELSE 'in_startup_processing' END
     WHERE id = p_id AND status IN ('init_shutdown', 'in_shutdown_processing', 'inactive');
    RETURN p_id;
END $$;
