-- Store predictions, progress, lease and status together. The first stored batch makes the scenario active. A frame with an
-- error was not inferred, and has NULL for its detections. p_errors may be left out, as programs of revision 1 do.
CREATE OR REPLACE FUNCTION store(p_id bigint, p_epoch bigint, p_instance uuid, p_lease interval, p_expected_frame bigint,
                      p_frames bigint[], p_pts double precision[], p_widths integer[], p_heights integer[],
                      p_detections jsonb[], p_inference_ms real[], p_errors text[] DEFAULT NULL)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE scenarios
       SET next_frame = p_frames[cardinality(p_frames)] + 1, frames_stored = frames_stored + cardinality(p_frames),
           status = CASE status WHEN 'in_startup_processing' THEN 'active' ELSE status END,
           lease_until = clock_timestamp() + p_lease
     WHERE id = p_id AND epoch = p_epoch AND instance_id = p_instance AND next_frame = p_expected_frame;
    IF NOT FOUND THEN PERFORM refuse(p_id, p_epoch, p_instance); END IF;
    INSERT INTO predictions (scenario_id, frame_index, epoch, pts_seconds, width, height, detections, inference_ms, error)
    SELECT p_id, u.frame, p_epoch, u.pts, u.width, u.height, u.found, u.ms, u.error
      FROM unnest(p_frames, p_pts, p_widths, p_heights, p_detections, p_inference_ms, p_errors)
           AS u(frame, pts, width, height, found, ms, error);
END $$;
