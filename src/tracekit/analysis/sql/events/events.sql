-- What happened, with the attributes that the format names as columns.
CREATE VIEW timeline AS
SELECT
    e.run_id, e.time_ns, (e.time_ns - r.started_ns) / 1e9 AS seconds, e.kind, e.request_id, e.step_id,
    (e.attributes ->> '$.old_version')::INTEGER AS old_version,
    (e.attributes ->> '$.version')::INTEGER AS version,
    e.attributes ->> '$.label' AS label,
    (e.attributes ->> '$.partial')::BOOLEAN AS partial,
    (e.attributes ->> '$.num_tensors')::BIGINT AS num_tensors,
    e.attributes ->> '$.names_hash' AS names_hash,
    (e.attributes ->> '$.num_calls')::BIGINT AS num_calls,
    e.attributes ->> '$.checksums.head' AS head_checksum,
    e.attributes ->> '$.checksums.embedding' AS embedding_checksum,
    (e.attributes ->> '$.checksums.head') <> (e.attributes ->> '$.old_checksums.head') AS head_changed,
    (e.attributes ->> '$.checksums.embedding') <> (e.attributes ->> '$.old_checksums.embedding') AS embedding_changed,
    (e.attributes ->> '$.num_rows')::BIGINT AS num_rows,
    e.attributes ->> '$.reason' AS reason,
    e.attributes
FROM events AS e
LEFT JOIN (SELECT run_id, min(started_ns) AS started_ns FROM runs GROUP BY run_id) AS r ON e.run_id = r.run_id
ORDER BY e.time_ns, e.kind;
COMMENT ON VIEW timeline IS 'Events in the order of time, with their attributes as columns. One row an event.';
COMMENT ON COLUMN timeline.run_id IS 'The run.';
COMMENT ON COLUMN timeline.time_ns IS 'When, in ns since the Unix epoch.';
COMMENT ON COLUMN timeline.seconds IS 'Seconds since the first process of the run began to write.';
COMMENT ON COLUMN timeline.kind IS 'What happened, as in events.';
COMMENT ON COLUMN timeline.request_id IS 'The request it concerns.';
COMMENT ON COLUMN timeline.step_id IS 'The step in which it happened.';
COMMENT ON COLUMN timeline.old_version IS 'weights_updated: the weight version before.';
COMMENT ON COLUMN timeline.version IS 'weights_updated, weights_loaded: the weight version.';
COMMENT ON COLUMN timeline.label IS 'What the engine or the trainer calls that version.';
COMMENT ON COLUMN timeline.partial IS 'weights_updated: whether the update was still under way.';
COMMENT ON COLUMN timeline.num_tensors IS 'weights_updated: tensors that came; null where the engine does not tell.';
COMMENT ON COLUMN timeline.names_hash IS 'weights_updated: hash of their names; null where the engine does not tell.';
COMMENT ON COLUMN timeline.num_calls IS 'weights_updated: calls by which they came.';
COMMENT ON COLUMN timeline.head_checksum IS 'SHA-256 of the head after it, where the recording keeps checksums.';
COMMENT ON COLUMN timeline.embedding_checksum IS 'SHA-256 of the token embedding after it, where the recording keeps checksums.';
COMMENT ON COLUMN timeline.head_changed IS 'Whether the head differs from before; null without both checksums. False at an update that should bring one: the head is stale.';
COMMENT ON COLUMN timeline.embedding_changed IS 'The same for the token embedding.';
COMMENT ON COLUMN timeline.num_rows IS 'rows_dropped: how many rows are missing.';
COMMENT ON COLUMN timeline.reason IS 'Why, where the event has a reason.';
COMMENT ON COLUMN timeline.attributes IS 'All attributes, as JSON.';

CREATE VIEW losses AS
SELECT
    r.run_id, r.num_writers, coalesce(e.num_closed, 0) AS num_writers_closed, coalesce(e.num_rows_dropped, 0) AS num_rows_dropped,
    coalesce(e.num_errors, 0) AS num_errors, coalesce(e.num_disabled, 0) AS num_disabled, r.disabled_reason
FROM (
    SELECT run_id, count(DISTINCT writer) AS num_writers, min(disabled_reason) AS disabled_reason FROM runs GROUP BY run_id
) AS r
LEFT JOIN (
    SELECT
        run_id, count_if(kind = 'writer_closed') AS num_closed, sum(num_rows) FILTER (kind = 'rows_dropped')::BIGINT AS num_rows_dropped,
        count_if(kind = 'recorder_error') AS num_errors, count_if(kind = 'recorder_disabled') AS num_disabled
    FROM timeline
    GROUP BY run_id
) AS e ON r.run_id = e.run_id;
COMMENT ON VIEW losses IS 'What a recording lost. One row a run.';
COMMENT ON COLUMN losses.run_id IS 'The run.';
COMMENT ON COLUMN losses.num_writers IS 'Processes that wrote.';
COMMENT ON COLUMN losses.num_writers_closed IS 'Events writer_closed: processes that ended in good order say so.';
COMMENT ON COLUMN losses.num_rows_dropped IS 'Rows missing by the events rows_dropped, summed.';
COMMENT ON COLUMN losses.num_errors IS 'Hooks that failed.';
COMMENT ON COLUMN losses.num_disabled IS 'How often the recorder switched itself off.';
COMMENT ON COLUMN losses.disabled_reason IS 'Why a process did not record from its start; the first in alphabetical order of several.';
