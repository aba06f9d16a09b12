-- End the shutdown of every scenario without a runner, and return the attempts whose runners are to be stopped. Any node
-- may call this. The rows name no node, because a scenario's node may change while a runner is slow to claim.
CREATE OR REPLACE FUNCTION shutdowns() RETURNS TABLE (scenario_id bigint, epoch bigint)
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE scenarios s SET status = 'inactive', spawn_until = NULL
     WHERE s.id IN (SELECT c.id FROM scenarios c WHERE c.status IN ('init_shutdown', 'in_shutdown_processing')
                       AND c.instance_id IS NULL FOR UPDATE SKIP LOCKED);
    UPDATE scenarios s SET status = 'in_shutdown_processing'
     WHERE s.status = 'init_shutdown' AND s.instance_id IS NOT NULL;
    RETURN QUERY SELECT s.id, s.epoch FROM scenarios s WHERE s.status = 'in_shutdown_processing';
END $$;
