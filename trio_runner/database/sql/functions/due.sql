-- Give a node the attempts that are due: at most p_limit, and no more than it has room for. Attempts of scenarios that began
-- before and lost their runner come first, so that they need not queue behind all that never began; then the longest due. No
-- other node starts them until the lease ends. Safety does not rest on that: however many runners are started, one of them
-- claims the epoch.
CREATE OR REPLACE FUNCTION due(p_node text, p_room integer, p_limit integer, p_lease interval)
RETURNS TABLE (scenario_id bigint, epoch bigint, video_path text, settings jsonb, failures integer, last_code text)
LANGUAGE sql AS $$
WITH busy AS (
    SELECT count(*) AS runners FROM scenarios
     WHERE node = p_node AND outcome IS NULL
       AND (instance_id IS NOT NULL OR spawn_until > clock_timestamp())
), chosen AS (
    SELECT id FROM scenarios
     WHERE status = 'init_startup' AND outcome IS NULL AND instance_id IS NULL AND not_before <= clock_timestamp()
       AND (spawn_until IS NULL OR spawn_until <= clock_timestamp())
     ORDER BY (epoch = 1), not_before
     LIMIT greatest(0, least(p_limit, (SELECT p_room - runners FROM busy)))
       FOR UPDATE SKIP LOCKED
), given AS (
    UPDATE scenarios s SET node = p_node, spawn_until = clock_timestamp() + p_lease
      FROM chosen WHERE s.id = chosen.id
    RETURNING s.*
)
SELECT id, epoch, video_path, settings, failures, last_error ->> 'code' FROM given ORDER BY (epoch = 1), not_before
$$;
