-- Make an attempt due again later, because its runner could not be started. No attempt was made, so none is counted. Returns
-- false where a runner has claimed the attempt, or the scenario is no longer to be started.
CREATE OR REPLACE FUNCTION postpone(p_id bigint, p_epoch bigint, p_node text, p_delay interval, p_why text) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE scenarios SET spawn_until = NULL, not_before = clock_timestamp() + p_delay,
                         last_error = jsonb_build_object('code', 'not_started', 'message', p_why)
     WHERE id = p_id AND epoch = p_epoch AND node = p_node AND instance_id IS NULL AND status = 'init_startup';
    RETURN FOUND;
END $$;
