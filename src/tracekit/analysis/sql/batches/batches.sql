-- Who was in the batch with whom, on both sides: a request's neighbours can change its logits by rounding.
CREATE VIEW _a_batches AS
SELECT s.run_id, s.step_id, any_value(s.num_requests) AS num_requests,
    list({'match': m.match_id, 'id': CASE WHEN m.match_id IS NULL THEN s.request_id END, 'scheduled': s.scheduled,
        'computed': s.computed} ORDER BY s.place) AS batch
FROM (
    SELECT run_id, step_id, num_requests, unnest(request_ids) AS request_id, unnest(scheduled_tokens) AS scheduled,
        unnest(computed_tokens) AS computed, generate_subscripts(request_ids, 1) AS place
    FROM a.steps
) AS s
LEFT JOIN _aligned AS m ON s.run_id = m.a_run_id AND s.request_id = m.a_request_id
GROUP BY s.run_id, s.step_id;

CREATE VIEW _b_batches AS
SELECT s.run_id, s.step_id, any_value(s.num_requests) AS num_requests,
    list({'match': m.match_id, 'id': CASE WHEN m.match_id IS NULL THEN s.request_id END, 'scheduled': s.scheduled,
        'computed': s.computed} ORDER BY s.place) AS batch
FROM (
    SELECT run_id, step_id, num_requests, unnest(request_ids) AS request_id, unnest(scheduled_tokens) AS scheduled,
        unnest(computed_tokens) AS computed, generate_subscripts(request_ids, 1) AS place
    FROM b.steps
) AS s
LEFT JOIN _aligned AS m ON s.run_id = m.b_run_id AND s.request_id = m.b_request_id
GROUP BY s.run_id, s.step_id;

CREATE VIEW pair_batches AS
SELECT p.request_id, p.output_index, p.d, p.d_processed, p.a_step_id, p.b_step_id,
    a.num_requests AS a_num_requests, b.num_requests AS b_num_requests, a.batch = b.batch AS same_batch
FROM pairs AS p
LEFT JOIN _a_batches AS a ON p.a_run_id = a.run_id AND p.a_step_id = a.step_id
LEFT JOIN _b_batches AS b ON p.b_run_id = b.run_id AND p.b_step_id = b.step_id;
-- Example: SELECT same_batch, count(*), avg(abs(d)) FROM pair_batches GROUP BY same_batch
COMMENT ON VIEW pair_batches IS 'The rows of pairs beside the batches that computed them: whether both sides had the same requests in it, in the same order, each with as many tokens. One row a position.';
COMMENT ON COLUMN pair_batches.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN pair_batches.output_index IS 'Which output token, from 0.';
COMMENT ON COLUMN pair_batches.d IS 'As in pairs: b_logprob - a_logprob in nat.';
COMMENT ON COLUMN pair_batches.d_processed IS 'As in pairs: b_processed_logprob - a_processed_logprob in nat.';
COMMENT ON COLUMN pair_batches.a_step_id IS 'A: the step that sampled it.';
COMMENT ON COLUMN pair_batches.b_step_id IS 'B: the step that sampled it.';
COMMENT ON COLUMN pair_batches.a_num_requests IS 'A: requests in that step.';
COMMENT ON COLUMN pair_batches.b_num_requests IS 'B: requests in that step.';
COMMENT ON COLUMN pair_batches.same_batch IS 'Whether the batches of both steps are equal: the same requests in the same order, each with as many tokens scheduled and computed before. Null where a side has no steps.';
