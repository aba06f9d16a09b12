-- Note that Kafka has acknowledged the retry event of this death.
CREATE OR REPLACE FUNCTION mark_published(p_id bigint, p_epoch bigint) RETURNS void
LANGUAGE sql AS $$
UPDATE retry_events SET published_at = clock_timestamp() WHERE scenario_id = p_id AND epoch = p_epoch AND published_at IS NULL
$$;
