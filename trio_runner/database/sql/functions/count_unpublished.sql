-- How many retry events have yet to be published, those included that a process has taken in order to publish them.
CREATE OR REPLACE FUNCTION count_unpublished() RETURNS bigint
LANGUAGE sql AS $$
SELECT count(*) FROM unpublished_events
$$;
