-- The scenarios that were given up and are not yet published on the dead-letter topic, for the caller alone until the lease
-- ends. A scenario that goes on again, perhaps started by hand, is no dead letter any more.
CREATE OR REPLACE FUNCTION dead_letters(p_limit integer, p_lease interval)
RETURNS TABLE (scenario_id bigint, epoch bigint, video_path text, failures integer, frames_stored bigint, error jsonb)
LANGUAGE sql AS $$
UPDATE scenarios s SET dead_letter_due = clock_timestamp() + p_lease
 WHERE s.id IN (SELECT id FROM scenarios WHERE dead_letter_due <= now() AND outcome = 'failed'
                 ORDER BY dead_letter_due LIMIT p_limit FOR UPDATE SKIP LOCKED)
RETURNING s.id, s.epoch - 1, s.video_path, s.failures, s.frames_stored, s.last_error
$$;
