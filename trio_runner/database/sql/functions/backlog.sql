-- How many scenarios are in which condition; this reads every scenario that is not inactive. `unproven` scenarios were
-- started and have yet to store something.
CREATE OR REPLACE FUNCTION backlog() RETURNS TABLE (due bigint, backing_off bigint, unproven bigint, running bigint, stopping bigint)
LANGUAGE sql AS $$
SELECT count(*) FILTER (WHERE status = 'init_startup' AND not_before <= clock_timestamp()
                          AND (spawn_until IS NULL OR spawn_until <= clock_timestamp())),
       count(*) FILTER (WHERE status = 'init_startup' AND not_before > clock_timestamp()),
       count(*) FILTER (WHERE status = 'in_startup_processing'
                           OR (status = 'init_startup' AND spawn_until > clock_timestamp())),
       count(*) FILTER (WHERE instance_id IS NOT NULL),
       count(*) FILTER (WHERE status IN ('init_shutdown', 'in_shutdown_processing'))
  FROM scenarios WHERE status <> 'inactive' AND outcome IS NULL
$$;
