-- Where each aligned request first diverges: found without reading the pairs once more.
CREATE VIEW _divergence AS
SELECT a_run_id, a_request_id, least(fork_index, flip_index) AS output_index,
    CASE WHEN fork_index <= coalesce(flip_index, 2147483647) THEN 'token' WHEN flip_index IS NOT NULL THEN 'argmax' END AS kind
FROM (
    SELECT m.a_run_id, m.a_request_id, m.fork_index, least(p.index, t.index) AS flip_index
    FROM (SELECT a_run_id, a_request_id, CASE WHEN fork_index < num_compared THEN fork_index END AS fork_index FROM _aligned) AS m
    LEFT JOIN (SELECT run_id, request_id, min(clear_flip_index) AS index FROM _parts GROUP BY ALL) AS p
        ON m.a_run_id = p.run_id AND m.a_request_id = p.request_id
    LEFT JOIN (SELECT run_id, request_id, min(output_index) AS index FROM _tied_flips WHERE NOT tied GROUP BY ALL) AS t
        ON m.a_run_id = t.run_id AND m.a_request_id = t.request_id
);

CREATE VIEW first_divergence AS
SELECT d.a_request_id AS request_id, d.output_index, d.kind, a_token_id, b_token_id, a_argmax_token_id, b_argmax_token_id,
    a_top1_margin, b_top1_margin
FROM _divergence AS d
LEFT JOIN pairs AS p ON d.a_run_id = p.a_run_id AND d.a_request_id = p.request_id AND d.output_index = p.output_index
ORDER BY d.a_request_id;
-- Example: SELECT kind, count(*), median(output_index), avg(a_top1_margin) FROM first_divergence GROUP BY kind
COMMENT ON VIEW first_divergence IS 'Where each aligned request first diverges; the columns are null where it never does. One row a request.';
COMMENT ON COLUMN first_divergence.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN first_divergence.output_index IS 'The output token at which it diverges, from 0.';
COMMENT ON COLUMN first_divergence.kind IS 'token: the token ids differ. argmax: the tokens were forced, and the first candidates of the raw logits differ, exact ties not counted. Null: no divergence.';
COMMENT ON COLUMN first_divergence.a_token_id IS 'The token in A.';
COMMENT ON COLUMN first_divergence.b_token_id IS 'The token in B.';
COMMENT ON COLUMN first_divergence.a_argmax_token_id IS 'The first candidate in A.';
COMMENT ON COLUMN first_divergence.b_argmax_token_id IS 'The first candidate in B.';
COMMENT ON COLUMN first_divergence.a_top1_margin IS 'Largest raw logit of A minus its second largest; 0 for a tie.';
COMMENT ON COLUMN first_divergence.b_top1_margin IS 'Largest raw logit of B minus its second largest; 0 for a tie.';

-- What a report says of first_divergence, in one row.
CREATE VIEW _divergence_summary AS
SELECT
    count(*) FILTER (kind = 'token') AS num_token,
    count(*) FILTER (kind = 'argmax') AS num_argmax,
    count(*) FILTER (kind IS NULL) AS num_none,
    min(output_index) AS earliest_output_index,
    median(output_index) AS median_output_index
FROM _divergence;
