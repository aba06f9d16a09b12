-- The ledger's tables, views and indexes in their present form. The constraints hold everything that a reader needs in order
-- to trust a row. A new database gets this file; an existing one gets the numbered files of changes/ that it lacks.

CREATE TABLE scenarios (
    id              bigint PRIMARY KEY CHECK (id > 0),
    video_path      text NOT NULL CHECK (length(video_path) BETWEEN 1 AND 4096),
    -- The values that replace those of the runner's config for this scenario: {"section": {"key": value}}.
    settings        jsonb NOT NULL DEFAULT '{}'
        CHECK (jsonb_typeof(settings) = 'object' AND NOT jsonb_path_exists(settings, '$.* ? (@.type() != "object")')),
    status          text NOT NULL DEFAULT 'init_startup' CHECK (status IN (
                        'init_startup', 'in_startup_processing', 'active',
                        'init_shutdown', 'in_shutdown_processing', 'inactive')),
    outcome         text CHECK (outcome IN ('completed', 'failed')),
    -- Attempt number, fencing token and dedupe key in one; it only ever grows. The row holds the epoch of the attempt that
    -- is running, or of the one that may be claimed next.
    epoch           bigint NOT NULL DEFAULT 1 CHECK (epoch > 0),
    -- The number of the last attempt that is allowed. Each attempt that stored something and died raises it by one.
    last_epoch      bigint NOT NULL DEFAULT 50 CHECK (last_epoch > 0),
    -- The one process that claimed this epoch. The lease shows whether that process is alive; safety rests on epoch and
    -- instance, never on the clock.
    instance_id     uuid,
    lease_until     timestamptz,
    -- The node that starts the runner of this epoch, and until when no other node tries.
    node            text,
    spawn_until     timestamptz,
    -- Set by the first claim, and by a later one while nothing is stored: what identifies the video's content, and the
    -- options that chose its frames. A claim returns both; a runner whose own differ would mix two things in one table.
    video_identity  text,
    sampling        jsonb CHECK (jsonb_typeof(sampling) = 'object'),
    -- Every selected frame below next_frame is stored; frames_stored of them were selected.
    next_frame      bigint NOT NULL DEFAULT 0 CHECK (next_frame >= 0),
    frames_stored   bigint NOT NULL DEFAULT 0 CHECK (frames_stored BETWEEN 0 AND next_frame),
    total_frames    bigint CHECK (total_frames >= 0),
    failures        integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    max_failures    integer NOT NULL DEFAULT 5 CHECK (max_failures > 0),
    not_before      timestamptz NOT NULL DEFAULT now(),
    last_error      jsonb,
    -- The scenario was given up and its dead letter is not yet published: from this time on anybody may publish it.
    dead_letter_due timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CHECK ((instance_id IS NULL) = (lease_until IS NULL)),
    CHECK (outcome IS NULL OR instance_id IS NULL),
    CHECK (outcome IS DISTINCT FROM 'completed' OR frames_stored = total_frames),
    -- A scenario without a frame is not completed, because it proved nothing.
    CHECK (outcome IS DISTINCT FROM 'completed' OR total_frames > 0)
) WITH (fillfactor = 70);

CREATE INDEX scenarios_lease ON scenarios (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX scenarios_next ON scenarios ((epoch = 1), not_before) WHERE status = 'init_startup';
CREATE INDEX scenarios_node ON scenarios (node) WHERE outcome IS NULL;
CREATE INDEX scenarios_spawn ON scenarios (spawn_until) WHERE status = 'init_startup';
CREATE INDEX scenarios_starting ON scenarios (id) WHERE status = 'in_startup_processing';
CREATE INDEX scenarios_shutdown ON scenarios (id) WHERE status IN ('init_shutdown', 'in_shutdown_processing');
CREATE INDEX scenarios_dead_letter ON scenarios (dead_letter_due) WHERE dead_letter_due IS NOT NULL;

-- The ids of scenarios that were submitted without one.
CREATE SEQUENCE scenario_ids;

-- One row for every frame that was processed, also when nothing was seen in it, or when it could not be inferred.
CREATE TABLE predictions (
    scenario_id  bigint NOT NULL REFERENCES scenarios,
    frame_index  bigint NOT NULL CHECK (frame_index >= 0),
    epoch        bigint NOT NULL,
    -- A NaN is greater than every number, so it is refused, too.
    pts_seconds  double precision NOT NULL CHECK (pts_seconds > '-Infinity' AND pts_seconds < 'Infinity'),
    -- The picture as a player shows it; the boxes are in its pixels. A video may change its size on the way.
    width        integer NOT NULL CHECK (width BETWEEN 1 AND 65535),
    height       integer NOT NULL CHECK (height BETWEEN 1 AND 65535),
    -- NULL where the frame was not inferred, so that such a frame is never counted as one in which nothing was seen.
    detections   jsonb CHECK (jsonb_typeof(detections) = 'array'),
    inference_ms real NOT NULL CHECK (inference_ms >= 0 AND inference_ms < 'Infinity'),
    created_at   timestamptz NOT NULL DEFAULT now(),
    -- Why the frame was not inferred.
    error        text CHECK (length(error) BETWEEN 1 AND 1000),
    PRIMARY KEY (scenario_id, frame_index),
    CHECK ((detections IS NULL) = (error IS NOT NULL))
);

-- A claim returns how many of the scenario's frames were not inferred.
CREATE INDEX predictions_not_inferred ON predictions (scenario_id) WHERE error IS NOT NULL;

CREATE TABLE attempts (
    scenario_id bigint NOT NULL REFERENCES scenarios,
    epoch       bigint NOT NULL,
    runner_id   text NOT NULL,
    instance_id uuid NOT NULL,
    host        text NOT NULL,
    -- The topic on which this attempt's death is published, by any process.
    retry_topic text,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at    timestamptz,
    first_frame bigint NOT NULL,
    end_frame   bigint,
    outcome     text CHECK (outcome IN ('completed', 'failed', 'interrupted', 'lost')),
    error       jsonb,
    PRIMARY KEY (scenario_id, epoch),
    CHECK ((ended_at IS NULL) = (outcome IS NULL))
);

CREATE INDEX attempts_started ON attempts (started_at);
CREATE INDEX attempts_instance ON attempts (instance_id);

-- One row for each death, by the process that reported it first.
CREATE TABLE retry_events (
    scenario_id  bigint NOT NULL REFERENCES scenarios,
    epoch        bigint NOT NULL,
    event_id     uuid NOT NULL UNIQUE,
    reporter     text NOT NULL,
    body         jsonb NOT NULL,
    received_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- When Kafka had acknowledged the event. A process that dies between the ledger and Kafka leaves this empty, for a reaper.
    published_at timestamptz,
    -- From when on any process may publish the event. Until then it is left to the one that recorded the death, or to the
    -- one that `unpublished` gave it to last.
    publish_due  timestamptz NOT NULL DEFAULT clock_timestamp() + interval '60 s',
    PRIMARY KEY (scenario_id, epoch)
);

CREATE INDEX retry_events_unpublished ON retry_events (publish_due) WHERE published_at IS NULL;

-- One row for each command that was applied, however often its message comes.
CREATE TABLE commands (
    id          text PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 200),
    scenario_id bigint NOT NULL,
    action      text NOT NULL CHECK (action IN ('start', 'stop')),
    received_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One row for each detection, for people who ask with SQL. A detection without a box has NULL in x1 to y2.
CREATE VIEW detections AS
SELECT p.scenario_id, p.frame_index, p.pts_seconds, d.value ->> 'label' AS label,
       (d.value ->> 'confidence')::double precision AS confidence,
       (d.value -> 'bbox' ->> 0)::double precision AS x1, (d.value -> 'bbox' ->> 1)::double precision AS y1,
       (d.value -> 'bbox' ->> 2)::double precision AS x2, (d.value -> 'bbox' ->> 3)::double precision AS y2,
       p.width, p.height, (d.value ->> 'class_id')::bigint AS class_id,
       coalesce(d.value -> 'attributes', '{}') AS attributes
  FROM predictions p CROSS JOIN LATERAL jsonb_array_elements(p.detections) AS d;

-- One row for each stored frame, which tells a frame in which nothing was seen (0) from one that was not inferred (NULL).
CREATE VIEW frames AS
SELECT p.scenario_id, p.frame_index, p.pts_seconds, p.width, p.height, p.error IS NULL AS inferred, p.error,
       jsonb_array_length(p.detections) AS detections, p.inference_ms
  FROM predictions p;

-- The deaths whose retry events Kafka has not acknowledged. A death that a takeover recorded need not be published once the
-- next attempt, which recorded it, has begun.
CREATE VIEW unpublished_events AS
SELECT e.* FROM retry_events e
 WHERE e.published_at IS NULL
   AND (e.reporter <> 'takeover'
        OR NOT EXISTS (SELECT FROM attempts a WHERE a.scenario_id = e.scenario_id AND a.epoch > e.epoch));
