-- Work for a fleet: what was submitted, what of it is due, who is starting a runner for it, and what is to stop. The policy
-- of retries lies here, so that any number of orchestrators follow the same one.

ALTER TABLE scenarios
    -- What the runner's config is to say differently for this scenario: {"section": {"key": value}}.
    ADD COLUMN settings jsonb NOT NULL DEFAULT '{}'
        CHECK (jsonb_typeof(settings) = 'object' AND NOT jsonb_path_exists(settings, '$.* ? (@.type() != "object")')),
    -- The last attempt that there may be. It moves on with each interrupted attempt that stored something.
    ADD COLUMN last_epoch bigint NOT NULL DEFAULT 50 CHECK (last_epoch > 0),
    -- Which node starts the runner of this epoch; until when it has the time to, and no other tries.
    ADD COLUMN node text,
    ADD COLUMN spawn_until timestamptz,
    -- Given up, and the dead-letter topic has yet to hear of it: from then on anybody may tell it.
    ADD COLUMN dead_letter_due timestamptz;

CREATE INDEX scenarios_next ON scenarios ((epoch = 1), not_before) WHERE status = 'init_startup';
DROP INDEX scenarios_due;

-- What has been tried often before this limit was there may be tried as often again.
UPDATE scenarios SET last_epoch = epoch + 49 WHERE epoch > 1;

CREATE INDEX scenarios_node ON scenarios (node) WHERE outcome IS NULL;
CREATE INDEX scenarios_shutdown ON scenarios (id) WHERE status IN ('init_shutdown', 'in_shutdown_processing');
CREATE INDEX scenarios_starting ON scenarios (id) WHERE status = 'in_startup_processing';
CREATE INDEX scenarios_spawn ON scenarios (spawn_until) WHERE status = 'init_startup';
CREATE INDEX scenarios_dead_letter ON scenarios (dead_letter_due) WHERE dead_letter_due IS NOT NULL;
CREATE INDEX attempts_started ON attempts (started_at);

CREATE SEQUENCE scenario_ids;

-- Each command once, however often its message comes.
CREATE TABLE commands (
    id          text PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 200),
    scenario_id bigint NOT NULL,
    action      text NOT NULL CHECK (action IN ('start', 'stop')),
    received_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Ask for a scenario to be processed; p_id = 0: under a new id. What runs or waits already stays as it is; what was
-- stopped goes on.
CREATE FUNCTION submit(p_id bigint, p_video text, p_settings jsonb, p_max_failures integer, p_max_epochs integer)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
DECLARE s scenarios; new_id bigint := p_id;
BEGIN
    LOOP
        IF p_id = 0 THEN
            -- Some ids were given by hand.
            new_id := nextval('scenario_ids');
        END IF;
        INSERT INTO scenarios (id, video_path, settings, max_failures, last_epoch)
        VALUES (new_id, p_video, p_settings, p_max_failures, p_max_epochs) ON CONFLICT DO NOTHING;
        IF FOUND THEN RETURN new_id; END IF;
        EXIT WHEN p_id <> 0;
    END LOOP;
    SELECT * INTO s FROM scenarios WHERE id = p_id FOR UPDATE;
    IF s.outcome = 'completed' THEN
        RAISE EXCEPTION 'scenario % is completed: % frames stored', p_id, s.frames_stored USING ERRCODE = 'RN002';
    ELSIF s.video_path <> p_video OR s.settings <> p_settings THEN
        RAISE EXCEPTION 'scenario % exists with another video or other settings: %, %', p_id, s.video_path, s.settings
            USING ERRCODE = 'RN003';
    ELSIF s.outcome = 'failed' THEN
        RAISE EXCEPTION 'scenario % was given up: %; to try again: trio-runner retry CONFIG %',
            p_id, s.last_error ->> 'code', p_id USING ERRCODE = 'RN004';
    END IF;
    -- A runner that is being stopped ends all the same, and its successor starts at once.
    UPDATE scenarios SET status = CASE WHEN instance_id IS NULL THEN 'init_startup'
                                       WHEN next_frame > 0 THEN 'active' ELSE 'in_startup_processing' END
     WHERE id = p_id AND status IN ('init_shutdown', 'in_shutdown_processing', 'inactive');
    RETURN p_id;
END $$;

-- Ask for a scenario to be stopped; returns its status from now on.
CREATE FUNCTION stop(p_id bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
DECLARE now_status text;
BEGIN
    UPDATE scenarios SET status = 'init_shutdown'
     WHERE id = p_id AND status IN ('init_startup', 'in_startup_processing', 'active');
    SELECT status INTO now_status FROM scenarios WHERE id = p_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'scenario % does not exist', p_id USING ERRCODE = 'RN006';
    END IF;
    RETURN now_status;
END $$;

-- Try again, by hand and now: what was given up, was stopped, or waits for its next attempt.
CREATE FUNCTION retry(p_id bigint, p_max_epochs integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
DECLARE s scenarios;
BEGIN
    SELECT * INTO s FROM scenarios WHERE id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'scenario % does not exist', p_id USING ERRCODE = 'RN006';
    ELSIF s.outcome = 'completed' THEN
        RAISE EXCEPTION 'scenario % is completed: % frames stored', p_id, s.frames_stored USING ERRCODE = 'RN002';
    ELSIF s.instance_id IS NOT NULL OR s.status NOT IN ('inactive', 'init_startup') THEN
        RAISE EXCEPTION 'scenario % is not dead: it is %', p_id, s.status USING ERRCODE = 'RN004';
    END IF;
    UPDATE scenarios SET status = 'init_startup', outcome = NULL, failures = 0, not_before = clock_timestamp(),
                         last_epoch = greatest(last_epoch, epoch + p_max_epochs - 1), dead_letter_due = NULL
     WHERE id = p_id;
    RETURN s.epoch;
END $$;

-- What a message asks for, once; false: it was obeyed before.
CREATE FUNCTION apply_command(p_command text, p_action text, p_id bigint, p_video text, p_settings jsonb,
                     p_max_failures integer, p_max_epochs integer)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
BEGIN
    INSERT INTO commands (id, scenario_id, action) VALUES (p_command, p_id, p_action) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN RETURN false; END IF;
    IF p_action = 'start' THEN
        PERFORM submit(p_id, p_video, p_settings, p_max_failures, p_max_epochs);
    ELSE
        PERFORM stop(p_id);
    END IF;
    RETURN true;
END $$;

-- Give a node what is due: at most p_limit, and no more than it has room for. First what was begun before and lost its
-- runner, so that it need not queue behind all that was never begun; then what has been due the longest. Until the lease
-- ends no other node starts it; safety does not rest on that, since one runner claims the epoch, however many are started.
CREATE FUNCTION due(p_node text, p_room integer, p_limit integer, p_lease interval)
RETURNS TABLE (scenario_id bigint, epoch bigint, video_path text, settings jsonb, failures integer, last_code text)
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
WITH busy AS (
    SELECT count(*) AS runners FROM scenarios
     WHERE node = p_node AND outcome IS NULL
       AND (instance_id IS NOT NULL OR spawn_until > clock_timestamp())
), chosen AS (
    SELECT id FROM scenarios
     WHERE status = 'init_startup' AND outcome IS NULL AND instance_id IS NULL AND not_before <= clock_timestamp()
       AND (spawn_until IS NULL OR spawn_until <= clock_timestamp())
     ORDER BY (epoch = 1), not_before
     LIMIT greatest(0, least(p_limit, (SELECT p_room - runners FROM busy)))
       FOR UPDATE SKIP LOCKED
), given AS (
    UPDATE scenarios s SET node = p_node, spawn_until = clock_timestamp() + p_lease
      FROM chosen WHERE s.id = chosen.id
    RETURNING s.*
)
SELECT id, epoch, video_path, settings, failures, last_error ->> 'code' FROM given ORDER BY (epoch = 1), not_before
$$;

-- The runner of that attempt could not be started; no attempt was made, so none is counted. False: it is no longer so.
CREATE FUNCTION postpone(p_id bigint, p_epoch bigint, p_node text, p_delay interval, p_why text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
BEGIN
    UPDATE scenarios SET spawn_until = NULL, not_before = clock_timestamp() + p_delay,
                         last_error = jsonb_build_object('code', 'not_started', 'message', p_why)
     WHERE id = p_id AND epoch = p_epoch AND node = p_node AND instance_id IS NULL AND status = 'init_startup';
    RETURN FOUND;
END $$;

-- End the shutdown of what no runner works on, whoever asks; and which runners are to be asked to leave. By whom is not
-- said: the node that is written down may have changed while a runner took long to claim.
CREATE FUNCTION shutdowns() RETURNS TABLE (scenario_id bigint, epoch bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
BEGIN
    UPDATE scenarios s SET status = 'inactive', spawn_until = NULL
     WHERE s.id IN (SELECT c.id FROM scenarios c WHERE c.status IN ('init_shutdown', 'in_shutdown_processing')
                       AND c.instance_id IS NULL FOR UPDATE SKIP LOCKED);
    UPDATE scenarios s SET status = 'in_shutdown_processing'
     WHERE s.status = 'init_shutdown' AND s.instance_id IS NOT NULL;
    RETURN QUERY SELECT s.id, s.epoch FROM scenarios s WHERE s.status = 'in_shutdown_processing';
END $$;

-- Note what Kafka has told of deaths, and give back which of them the ledger does not know although that process claimed.
CREATE FUNCTION reconcile(p_ids bigint[], p_epochs bigint[], p_instances uuid[])
RETURNS TABLE (scenario_id bigint, epoch bigint)
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
WITH said AS (
    SELECT a.scenario_id, a.epoch, a.ended_at FROM unnest(p_ids, p_epochs, p_instances) AS u(id, epoch, instance)
      JOIN attempts a ON a.scenario_id = u.id AND a.epoch = u.epoch AND a.instance_id = u.instance
), noted AS (
    UPDATE retry_events e SET published_at = clock_timestamp() FROM said
     WHERE e.scenario_id = said.scenario_id AND e.epoch = said.epoch AND e.published_at IS NULL
)
SELECT DISTINCT said.scenario_id, said.epoch FROM said WHERE said.ended_at IS NULL
$$;

-- Who claimed that epoch of a scenario, if anybody has, and whether its end is recorded.
CREATE FUNCTION claim_of(p_id bigint, p_epoch bigint)
RETURNS TABLE (video_path text, instance_id uuid, next_frame bigint, frames_stored bigint, runner_id text, ended boolean)
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
SELECT s.video_path, a.instance_id, s.next_frame, s.frames_stored, a.runner_id, a.ended_at IS NOT NULL
  FROM scenarios s LEFT JOIN attempts a ON a.scenario_id = s.id AND a.epoch = p_epoch WHERE s.id = p_id
$$;

-- What was given up and the dead-letter topic has not been told of, for whoever asks first; after the lease for others.
-- What goes on by now, started by hand perhaps, is no dead letter any more.
CREATE FUNCTION dead_letters(p_limit integer, p_lease interval)
RETURNS TABLE (scenario_id bigint, epoch bigint, video_path text, failures integer, frames_stored bigint, error jsonb)
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
UPDATE scenarios s SET dead_letter_due = clock_timestamp() + p_lease
 WHERE s.id IN (SELECT id FROM scenarios WHERE dead_letter_due <= now() AND outcome = 'failed'
                 ORDER BY dead_letter_due LIMIT p_limit FOR UPDATE SKIP LOCKED)
RETURNING s.id, s.epoch - 1, s.video_path, s.failures, s.frames_stored, s.last_error
$$;

CREATE FUNCTION mark_dead_letter_published(p_id bigint, p_epoch bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
UPDATE scenarios SET dead_letter_due = NULL WHERE id = p_id AND epoch = p_epoch + 1
$$;

-- The attempts that began last, the newest first: what they died of, and whether they had stored anything.
CREATE FUNCTION recent_attempts(p_limit integer) RETURNS TABLE (code text, progressed boolean)
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
SELECT a.error ->> 'code', coalesce(a.end_frame, s.next_frame) > a.first_frame
  FROM attempts a JOIN scenarios s ON s.id = a.scenario_id ORDER BY a.started_at DESC LIMIT p_limit
$$;

-- How many were started and have yet to store something.
CREATE FUNCTION unproven() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
SELECT (SELECT count(*) FROM scenarios WHERE status = 'in_startup_processing')
     + (SELECT count(*) FROM scenarios WHERE status = 'init_startup' AND spawn_until > now())
$$;

-- How many scenarios are in which condition, which takes a look at each; `unproven` were started and have yet to store something.
CREATE FUNCTION backlog() RETURNS TABLE (due bigint, backing_off bigint, unproven bigint, running bigint, stopping bigint)
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
SELECT count(*) FILTER (WHERE status = 'init_startup' AND not_before <= clock_timestamp()
                          AND (spawn_until IS NULL OR spawn_until <= clock_timestamp())),
       count(*) FILTER (WHERE status = 'init_startup' AND not_before > clock_timestamp()),
       count(*) FILTER (WHERE status = 'in_startup_processing'
                           OR (status = 'init_startup' AND spawn_until > clock_timestamp())),
       count(*) FILTER (WHERE instance_id IS NOT NULL),
       count(*) FILTER (WHERE status IN ('init_shutdown', 'in_shutdown_processing'))
  FROM scenarios WHERE status <> 'inactive' AND outcome IS NULL
$$;

-- Every scenario with its last attempt.
CREATE FUNCTION overview()
RETURNS TABLE (id bigint, status text, outcome text, epoch bigint, next_frame bigint, frames_stored bigint,
               total_frames bigint, failures integer, max_failures integer, last_epoch bigint, node text,
               instance_id uuid, lease_seconds double precision, due_seconds double precision, last_error jsonb,
               runner_id text, frames_per_second double precision)
LANGUAGE sql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
SELECT s.id, s.status, s.outcome, s.epoch, s.next_frame, s.frames_stored, s.total_frames, s.failures, s.max_failures,
       s.last_epoch, s.node, s.instance_id, extract(epoch FROM s.lease_until - clock_timestamp())::float8,
       extract(epoch FROM s.not_before - clock_timestamp())::float8, s.last_error, a.runner_id,
       ((coalesce(a.end_frame, s.next_frame) - a.first_frame)
         / nullif(extract(epoch FROM coalesce(a.ended_at, clock_timestamp()) - a.started_at), 0))::float8
  FROM scenarios s
  LEFT JOIN LATERAL (SELECT * FROM attempts WHERE scenario_id = s.id ORDER BY epoch DESC LIMIT 1) a ON true
 ORDER BY s.id
$$;

-- As before; the last attempt that there may be is the last, and whoever gives a scenario up owes a dead letter.
CREATE OR REPLACE FUNCTION fail(p_id bigint, p_epoch bigint, p_instance uuid, p_event uuid, p_reporter text, p_class text,
                                p_body jsonb, p_retry_after interval DEFAULT '0 s')
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = trio_runner, pg_temp AS $$
DECLARE s scenarios; counted integer; given_up boolean; progressed boolean;
BEGIN
    SELECT * INTO s FROM scenarios WHERE id = p_id FOR UPDATE;
    IF NOT FOUND OR s.outcome IS NOT NULL OR s.epoch <> p_epoch OR s.instance_id IS DISTINCT FROM p_instance
       OR (p_reporter IN ('takeover', 'reaper') AND s.lease_until >= clock_timestamp()) THEN
        RETURN false;
    END IF;
    SELECT s.next_frame > a.first_frame INTO progressed FROM attempts a WHERE a.scenario_id = p_id AND a.epoch = p_epoch;
    counted := CASE WHEN p_class = 'interrupted' THEN s.failures WHEN progressed THEN 0 ELSE s.failures + 1 END;
    IF p_class = 'interrupted' AND progressed THEN
        s.last_epoch := s.last_epoch + 1;
    END IF;
    given_up := p_class = 'permanent' OR counted >= s.max_failures OR s.epoch >= s.last_epoch;
    INSERT INTO retry_events (scenario_id, epoch, event_id, reporter, body)
    VALUES (p_id, p_epoch, p_event, p_reporter, p_body);
    UPDATE attempts
       SET ended_at = clock_timestamp(), end_frame = s.next_frame, error = p_body -> 'error',
           outcome = CASE WHEN p_class = 'interrupted' THEN 'interrupted' WHEN p_reporter = 'runner' THEN 'failed'
                          ELSE 'lost' END
     WHERE scenario_id = p_id AND epoch = p_epoch;
    UPDATE scenarios
       SET epoch = s.epoch + 1, instance_id = NULL, lease_until = NULL, failures = counted, last_epoch = s.last_epoch,
           node = NULL, spawn_until = NULL, last_error = p_body -> 'error',
           -- A shutdown that somebody has asked for meanwhile goes on, and one that is through stays so.
           status = CASE WHEN given_up THEN 'inactive'
                         WHEN s.status IN ('init_shutdown', 'in_shutdown_processing', 'inactive') THEN s.status
                         ELSE 'init_startup' END,
           outcome = CASE WHEN given_up THEN 'failed' END,
           dead_letter_due = CASE WHEN given_up THEN clock_timestamp() END,
           -- Exponential with full jitter (random up to 2^n seconds, at most 5 minutes), so that a fleet that fell
           -- together does not rise together; an interrupted attempt may go on at once.
           not_before = clock_timestamp() + CASE WHEN p_class = 'interrupted' THEN interval '0 s' ELSE
               greatest(p_retry_after, make_interval(secs => random() * least(300, power(2, least(counted, 12))))) END
     WHERE id = p_id;
    RETURN true;
END $$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA trio_runner FROM PUBLIC;
