-- Note that the dead-letter topic has this scenario.
CREATE OR REPLACE FUNCTION mark_dead_letter_published(p_id bigint, p_epoch bigint) RETURNS void
LANGUAGE sql AS $$
UPDATE scenarios SET dead_letter_due = NULL WHERE id = p_id AND epoch = p_epoch + 1
$$;
