-- Raise the error that explains why a fenced statement found no row: the attempt is over, or its progress is not where the caller left it. The fence
-- lies in the row, and not in the client, so that a runner that was frozen past its lease is refused when it wakes up.
--
-- The SQLSTATEs of all refusals: RN001 owned by a living runner, RN002 completed, RN003 another video, RN004 not to be run
-- (any more), RN005 superseded, RN006 no such scenario, RN007 progress is not where the caller left it, RN009 (from
-- guard_scenario) something would go backwards.
CREATE OR REPLACE FUNCTION refuse(p_id bigint, p_epoch bigint, p_instance uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE s scenarios;
BEGIN
    SELECT * INTO s FROM scenarios WHERE id = p_id;
    IF s.epoch = p_epoch AND s.instance_id = p_instance THEN
        RAISE EXCEPTION 'scenario % has % frames stored up to frame %: not where this runner left it',
            p_id, s.frames_stored, s.next_frame USING ERRCODE = 'RN007';
    END IF;
    RAISE EXCEPTION 'attempt % of scenario % is over; it is at attempt %', p_epoch, p_id, s.epoch
        USING ERRCODE = 'RN005';
END $$;
