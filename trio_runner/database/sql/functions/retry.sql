-- Try a scenario again, by hand and now: one that was given up, was stopped, or waits for its next attempt.
CREATE OR REPLACE FUNCTION retry(p_id bigint, p_max_epochs integer) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE s scenarios;
BEGIN
    SELECT * INTO s FROM scenarios WHERE id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'scenario % does not exist', p_id USING ERRCODE = 'RN006';
    ELSIF s.outcome = 'completed' THEN
        RAISE EXCEPTION 'scenario % is completed: % frames stored', p_id, s.frames_stored USING ERRCODE = 'RN002';
    ELSIF s.instance_id IS NOT NULL OR s.status NOT IN ('inactive', 'init_startup') THEN
        RAISE EXCEPTION 'scenario % is not dead: it is %', p_id, s.status USING ERRCODE = 'RN004';
    END IF;
    UPDATE scenarios SET status = 'init_startup', outcome = NULL, failures = 0, not_before = clock_timestamp(),
                         last_epoch = greatest(last_epoch, epoch + p_max_epochs - 1), dead_letter_due = NULL
     WHERE id = p_id;
    RETURN s.epoch;
END $$;
