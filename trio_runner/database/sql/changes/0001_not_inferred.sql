-- Frames that were not inferred, and detections that are no boxes.

ALTER TABLE predictions
    ALTER COLUMN detections DROP NOT NULL,
    ADD COLUMN error text CHECK (length(error) BETWEEN 1 AND 1000),
    ADD CHECK ((detections IS NULL) = (error IS NOT NULL));

CREATE INDEX predictions_not_inferred ON predictions (scenario_id) WHERE error IS NOT NULL;

CREATE OR REPLACE VIEW detections AS
SELECT p.scenario_id, p.frame_index, p.pts_seconds, d.value ->> 'label' AS label,
       (d.value ->> 'confidence')::double precision AS confidence,
       (d.value -> 'bbox' ->> 0)::double precision AS x1, (d.value -> 'bbox' ->> 1)::double precision AS y1,
       (d.value -> 'bbox' ->> 2)::double precision AS x2, (d.value -> 'bbox' ->> 3)::double precision AS y2,
       p.width, p.height, (d.value ->> 'class_id')::bigint AS class_id,
       coalesce(d.value -> 'attributes', '{}') AS attributes
  FROM predictions p CROSS JOIN LATERAL jsonb_array_elements(p.detections) AS d;

CREATE VIEW frames AS
SELECT p.scenario_id, p.frame_index, p.pts_seconds, p.width, p.height, p.error IS NULL AS inferred, p.error,
       jsonb_array_length(p.detections) AS detections, p.inference_ms
  FROM predictions p;
