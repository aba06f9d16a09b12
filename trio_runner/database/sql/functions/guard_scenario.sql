-- Nothing goes backwards: not the epoch, not the progress, and a completed scenario stays completed.
CREATE OR REPLACE FUNCTION guard_scenario() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.epoch < OLD.epoch OR NEW.next_frame < OLD.next_frame OR NEW.frames_stored < OLD.frames_stored
       OR (OLD.outcome = 'completed' AND NEW.outcome IS DISTINCT FROM 'completed') THEN
        RAISE EXCEPTION 'scenario % would go backwards', OLD.id USING ERRCODE = 'RN009';
    END IF;
    NEW.updated_at := now();
    RETURN NEW;
END $$;

-- The trigger stands here and not in tables.sql, because it needs the function and the function's file comes after the tables.
CREATE OR REPLACE TRIGGER guard_scenario BEFORE UPDATE ON scenarios FOR EACH ROW EXECUTE FUNCTION guard_scenario();
