-- The attempts that began last, the newest first: what each died of, and whether it had stored anything.
CREATE OR REPLACE FUNCTION recent_attempts(p_limit integer) RETURNS TABLE (code text, progressed boolean)
LANGUAGE sql AS $$
SELECT a.error ->> 'code', coalesce(a.end_frame, s.next_frame) > a.first_frame
  FROM attempts a JOIN scenarios s ON s.id = a.scenario_id ORDER BY a.started_at DESC LIMIT p_limit
$$;
