-- Note that the process that recorded this death will not publish its event: anybody may, from now on.
CREATE OR REPLACE FUNCTION hand_over(p_id bigint, p_epoch bigint) RETURNS void
LANGUAGE sql AS $$
UPDATE retry_events SET handed_over = true WHERE scenario_id = p_id AND epoch = p_epoch AND published_at IS NULL
$$;
