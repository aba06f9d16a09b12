-- Which deaths Kafka has been told of. Who dies between the ledger and Kafka leaves one that it has not, for a reaper.

ALTER TABLE retry_events ADD COLUMN told_at timestamptz;
-- What was recorded before this file is old news.
UPDATE retry_events SET told_at = received_at;
CREATE INDEX retry_events_untold ON retry_events (received_at) WHERE told_at IS NULL;

-- Kafka has acknowledged the event of this death.
CREATE FUNCTION told(p_id bigint, p_epoch bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
UPDATE retry_events SET told_at = clock_timestamp() WHERE scenario_id = p_id AND epoch = p_epoch AND told_at IS NULL
$$;

-- The events that whoever recorded them has had p_age to tell, and has not; a reaper's own are told by any reaper, at once. Of a
-- takeover nobody need be told: the next attempt is the one that recorded it.
CREATE FUNCTION untold(p_age interval, p_limit integer)
RETURNS TABLE (scenario_id bigint, epoch bigint, body text)
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
SELECT e.scenario_id, e.epoch, e.body::text FROM retry_events e
 WHERE e.told_at IS NULL AND e.reporter <> 'takeover'
   AND (e.reporter = 'reaper' OR e.received_at < clock_timestamp() - p_age)
 ORDER BY e.received_at LIMIT p_limit
$$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA trio_runner FROM PUBLIC;
