-- The deaths whose retry events are still unpublished p_age after they were recorded, the oldest first. The process that
-- recorded a death has that long to publish the event itself. What was handed over, or recorded by a reaper, may be published
-- by any reaper at once.
CREATE OR REPLACE FUNCTION unpublished(p_age interval, p_limit integer)
RETURNS TABLE (scenario_id bigint, epoch bigint)
LANGUAGE sql AS $$
SELECT e.scenario_id, e.epoch FROM unpublished_events e
 WHERE e.reporter = 'reaper' OR e.handed_over OR e.received_at < clock_timestamp() - p_age
 ORDER BY e.received_at LIMIT p_limit
$$;
