-- Renew the lease.
CREATE OR REPLACE FUNCTION heartbeat(p_id bigint, p_epoch bigint, p_instance uuid, p_lease interval)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE scenarios SET lease_until = clock_timestamp() + p_lease
     WHERE id = p_id AND epoch = p_epoch AND instance_id = p_instance;
    IF NOT FOUND THEN PERFORM refuse(p_id, p_epoch, p_instance); END IF;
END $$;
