-- Expressions over the columns of pairs that people group by, for metrics_by and metric_intervals_by.
CREATE MACRO position_bin("position") AS CASE WHEN "position" > 0 THEN (2 ** floor(log2("position")))::INTEGER ELSE 0 END;
COMMENT ON MACRO position_bin IS 'The largest power of two not beyond a position: 0, 1, 2, 4, 8, …. FROM metrics_by(position_bin(position)).';

CREATE MACRO token_class(logprob) AS CASE
    WHEN logprob >= ln(0.99::DOUBLE) THEN 'p >= 0.99'
    WHEN logprob >= ln(0.5::DOUBLE) THEN 'p >= 0.5'
    WHEN logprob >= ln(0.1::DOUBLE) THEN 'p >= 0.1'
    WHEN logprob IS NOT NULL THEN 'p < 0.1'
END;
COMMENT ON MACRO token_class IS 'How confident a side was of a token, by its logprob: FROM metrics_by(token_class(a_logprob)).';

CREATE MACRO batch_size_of(run_id_, step_id_) AS (
    SELECT any_value(num_requests) FROM a.steps AS s WHERE s.run_id = run_id_ AND s.step_id = step_id_
);
COMMENT ON MACRO batch_size_of IS 'How many requests were in the step of A that sampled a token: FROM metrics_by(batch_size_of(a_run_id, a_step_id)).';

CREATE MACRO was_cached(run_id_, request_id_) AS (
    SELECT any_value(num_cached_tokens) > 0 FROM a.requests AS r WHERE r.run_id = run_id_ AND r.request_id = request_id_
);
COMMENT ON MACRO was_cached IS 'Whether the request found a part of its prompt in the prefix cache of A: FROM metrics_by(was_cached(a_run_id, request_id)).';
