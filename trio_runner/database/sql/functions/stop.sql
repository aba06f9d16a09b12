-- Ask for a scenario to be stopped; returns its status from now on.
CREATE OR REPLACE FUNCTION stop(p_id bigint) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE now_status text;
BEGIN
    UPDATE scenarios SET status = 'init_shutdown'
     WHERE id = p_id AND status IN ('init_startup', 'in_startup_processing', 'active');
    SELECT status INTO now_status FROM scenarios WHERE id = p_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'scenario % does not exist', p_id USING ERRCODE = 'RN006';
    END IF;
    RETURN now_status;
END $$;
