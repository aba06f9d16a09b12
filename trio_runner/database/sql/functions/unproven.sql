-- How many scenarios were started and have yet to store something.
CREATE OR REPLACE FUNCTION unproven() RETURNS bigint
LANGUAGE sql AS $$
SELECT (SELECT count(*) FROM scenarios WHERE status = 'in_startup_processing')
     + (SELECT count(*) FROM scenarios WHERE status = 'init_startup' AND spawn_until > now())
$$;
