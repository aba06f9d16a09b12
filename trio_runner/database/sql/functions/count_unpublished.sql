-- How many retry events have yet to be published, whoever has taken them.
CREATE OR REPLACE FUNCTION count_unpublished() RETURNS bigint
LANGUAGE sql AS $$
SELECT count(*) FROM unpublished_events
$$;
