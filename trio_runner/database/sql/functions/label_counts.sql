-- For the summary at the end of a run: each label, its detections, and the frames with at least one of them.
CREATE OR REPLACE FUNCTION label_counts(p_id bigint) RETURNS TABLE (label text, detections bigint, frames bigint) LANGUAGE sql AS $$
SELECT d.label, count(*), count(DISTINCT d.frame_index)
  FROM detections d WHERE d.scenario_id = p_id GROUP BY d.label ORDER BY 2 DESC, 1
$$;
