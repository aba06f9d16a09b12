-- Apply a command once; false means that it was applied before.
CREATE OR REPLACE FUNCTION apply_command(p_command text, p_action text, p_id bigint, p_video text, p_settings jsonb,
                                         p_max_failures integer, p_max_epochs integer)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO commands (id, scenario_id, action) VALUES (p_command, p_id, p_action) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN RETURN false; END IF;
    IF p_action = 'start' THEN
        PERFORM submit(p_id, p_video, p_settings, p_max_failures, p_max_epochs);
    ELSE
        PERFORM stop(p_id);
    END IF;
    RETURN true;
END $$;
