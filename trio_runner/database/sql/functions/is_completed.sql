-- Whether this very attempt completed its scenario.
CREATE OR REPLACE FUNCTION is_completed(p_id bigint, p_epoch bigint) RETURNS boolean LANGUAGE sql AS $$
SELECT EXISTS (SELECT FROM scenarios s WHERE s.id = p_id AND s.epoch = p_epoch AND s.outcome = 'completed')
$$;
