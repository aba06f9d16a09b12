-- Complete the scenario: the end of the video was reached and every selected frame is stored.
CREATE OR REPLACE FUNCTION finish(p_id bigint, p_epoch bigint, p_instance uuid, p_total bigint, p_status text)
RETURNS void LANGUAGE plpgsql AS $$
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
