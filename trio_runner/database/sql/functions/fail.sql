-- Record a death, release the claim, and open the next attempt. The first report of an epoch's death counts. A repeated or
-- stale report, or one for another instance, changes nothing and returns false. So does a report by a takeover or a reaper,
-- which know of the death from the lease alone, when the lease has been renewed.
--
-- `failures` counts attempts that failed without progress: an attempt that stored something sets it to 0, and an
-- interrupted one leaves it as it is. An attempt that stored something also raises last_epoch by one, so that it never
-- counts towards giving up. The scenario is given up, and owes a dead letter, after a permanent failure, after
-- max_failures, and after last_epoch.
CREATE OR REPLACE FUNCTION fail(p_id bigint, p_epoch bigint, p_instance uuid, p_event uuid, p_reporter text, p_class text,
                                p_body jsonb, p_retry_after interval DEFAULT '0 s')
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE s scenarios; counted integer; given_up boolean; progressed boolean;
BEGIN
    SELECT * INTO s FROM scenarios WHERE id = p_id FOR UPDATE;
    IF NOT FOUND OR s.outcome IS NOT NULL OR s.epoch <> p_epoch OR s.instance_id IS DISTINCT FROM p_instance
       OR (p_reporter IN ('takeover', 'reaper') AND s.lease_until >= clock_timestamp()) THEN
        RETURN false;
    END IF;
    SELECT s.next_frame > a.first_frame INTO progressed FROM attempts a WHERE a.scenario_id = p_id AND a.epoch = p_epoch;
    counted := CASE WHEN p_class = 'interrupted' THEN s.failures WHEN progressed THEN 0 ELSE s.failures + 1 END;
    IF progressed THEN
        s.last_epoch := s.last_epoch + 1;
    END IF;
    given_up := p_class = 'permanent' OR counted >= s.max_failures OR s.epoch >= s.last_epoch;
    -- A reaper records many deaths before it publishes any: whichever reaper comes next publishes them.
    INSERT INTO retry_events (scenario_id, epoch, event_id, reporter, body, publish_due)
    VALUES (p_id, p_epoch, p_event, p_reporter, p_body,
            clock_timestamp() + CASE WHEN p_reporter = 'reaper' THEN interval '0 s' ELSE interval '60 s' END);
    UPDATE attempts
       SET ended_at = clock_timestamp(), end_frame = s.next_frame, error = p_body -> 'error',
           outcome = CASE WHEN p_class = 'interrupted' THEN 'interrupted' WHEN p_reporter = 'runner' THEN 'failed'
                          ELSE 'lost' END
     WHERE scenario_id = p_id AND epoch = p_epoch;
    UPDATE scenarios
       SET epoch = s.epoch + 1, instance_id = NULL, lease_until = NULL, failures = counted, last_epoch = s.last_epoch,
           node = NULL, spawn_until = NULL, last_error = p_body -> 'error',
           -- A shutdown that was asked for meanwhile goes on, and one that has ended stays ended.
           status = CASE WHEN given_up THEN 'inactive'
                         WHEN s.status IN ('init_shutdown', 'in_shutdown_processing', 'inactive') THEN s.status
                         ELSE 'init_startup' END,
           outcome = CASE WHEN given_up THEN 'failed' END,
           dead_letter_due = CASE WHEN given_up THEN clock_timestamp() END,
           -- Exponential with full jitter (random up to 2^n seconds, at most 5 minutes), so that runners that failed
           -- together do not start together. An interrupted attempt may go on at once.
           not_before = clock_timestamp() + CASE WHEN p_class = 'interrupted' THEN interval '0 s' ELSE
               greatest(p_retry_after, make_interval(secs => random() * least(300, power(2, least(counted, 12))))) END
     WHERE id = p_id;
    RETURN true;
END $$;
