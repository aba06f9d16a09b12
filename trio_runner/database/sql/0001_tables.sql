-- The ledger's tables. Everything a reader needs to trust a row stands in its constraints.

CREATE TABLE scenarios (
    id            bigint PRIMARY KEY CHECK (id > 0),
    video_path    text NOT NULL CHECK (length(video_path) BETWEEN 1 AND 4096),
    status        text NOT NULL DEFAULT 'init_startup' CHECK (status IN (
                      'init_startup', 'in_startup_processing', 'active',
                      'init_shutdown', 'in_shutdown_processing', 'inactive')),
    outcome       text CHECK (outcome IN ('completed', 'failed')),
    -- Attempt number, fencing token and dedupe key in one; it only ever grows. The row holds the epoch of the
    -- attempt that is running, or of the one that may be claimed next.
    epoch         bigint NOT NULL DEFAULT 1 CHECK (epoch > 0),
    -- The one process that claimed this epoch. The lease says whether it is alive; safety rests on epoch and
    -- instance, never on the clock.
    instance_id   uuid,
    lease_until   timestamptz,
    -- Every selected frame below next_frame is stored; frames_stored of them were selected.
    next_frame    bigint NOT NULL DEFAULT 0 CHECK (next_frame >= 0),
    frames_stored bigint NOT NULL DEFAULT 0 CHECK (frames_stored BETWEEN 0 AND next_frame),
    total_frames  bigint CHECK (total_frames >= 0),
    failures      integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    max_failures  integer NOT NULL DEFAULT 5 CHECK (max_failures > 0),
    not_before    timestamptz NOT NULL DEFAULT now(),
    last_error    jsonb,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    CHECK ((instance_id IS NULL) = (lease_until IS NULL)),
    CHECK (outcome IS NULL OR instance_id IS NULL),
    CHECK (outcome IS DISTINCT FROM 'completed' OR frames_stored = total_frames)
) WITH (fillfactor = 70);

CREATE INDEX scenarios_lease ON scenarios (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX scenarios_due ON scenarios (not_before) WHERE status = 'init_startup';

-- One row for every frame that was inferred, also when nothing was seen in it.
CREATE TABLE predictions (
    scenario_id  bigint NOT NULL REFERENCES scenarios,
    frame_index  bigint NOT NULL CHECK (frame_index >= 0),
    epoch        bigint NOT NULL,
    pts_seconds  double precision NOT NULL,
    detections   jsonb NOT NULL CHECK (jsonb_typeof(detections) = 'array'),
    inference_ms real NOT NULL CHECK (inference_ms >= 0),
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (scenario_id, frame_index)
);

CREATE TABLE attempts (
    scenario_id bigint NOT NULL REFERENCES scenarios,
    epoch       bigint NOT NULL,
    runner_id   text NOT NULL,
    instance_id uuid NOT NULL,
    host        text NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at    timestamptz,
    first_frame bigint NOT NULL,
    end_frame   bigint,
    outcome     text CHECK (outcome IN ('completed', 'failed', 'interrupted', 'lost')),
    error       jsonb,
    PRIMARY KEY (scenario_id, epoch),
    CHECK ((ended_at IS NULL) = (outcome IS NULL))
);

-- One row per death, whoever reported it first.
CREATE TABLE retry_events (
    scenario_id bigint NOT NULL REFERENCES scenarios,
    epoch       bigint NOT NULL,
    event_id    uuid NOT NULL UNIQUE,
    reporter    text NOT NULL,
    body        jsonb NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (scenario_id, epoch)
);

-- One row per box, for people who ask with SQL.
CREATE VIEW detections AS
SELECT p.scenario_id, p.frame_index, p.pts_seconds, d.value ->> 'label' AS label,
       (d.value ->> 'confidence')::double precision AS confidence,
       (d.value -> 'bbox' ->> 0)::double precision AS x1, (d.value -> 'bbox' ->> 1)::double precision AS y1,
       (d.value -> 'bbox' ->> 2)::double precision AS x2, (d.value -> 'bbox' ->> 3)::double precision AS y2
  FROM predictions p CROSS JOIN LATERAL jsonb_array_elements(p.detections) AS d;

CREATE FUNCTION guard_scenario() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.epoch < OLD.epoch OR NEW.next_frame < OLD.next_frame OR NEW.frames_stored < OLD.frames_stored
       OR (OLD.outcome = 'completed' AND NEW.outcome IS DISTINCT FROM 'completed') THEN
        RAISE EXCEPTION 'scenario % would go backwards', OLD.id USING ERRCODE = 'RN009';
    END IF;
    NEW.updated_at := now();
    RETURN NEW;
END $$;

CREATE TRIGGER guard_scenario BEFORE UPDATE ON scenarios FOR EACH ROW EXECUTE FUNCTION guard_scenario();
