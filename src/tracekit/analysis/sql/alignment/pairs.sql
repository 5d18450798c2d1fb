-- Aligned positions, with their differences.
CREATE VIEW pairs AS
SELECT
    *,
    CASE WHEN a_token_id = b_token_id THEN _difference(b_logprob, a_logprob) END AS d,
    CASE WHEN a_token_id = b_token_id THEN _difference(b_processed_logprob, a_processed_logprob) END AS d_processed,
    a_argmax_token_id = b_argmax_token_id AS argmax_equal
FROM _joined;
-- Example: SELECT request_id, output_index, token_id, d FROM pairs ORDER BY abs(d) DESC LIMIT 10
COMMENT ON VIEW pairs IS 'Positions that both traces delivered, aligned and proven to have equal context. A request ends at its first differing token, which is its last row. One row a position.';
COMMENT ON COLUMN pairs.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN pairs.output_index IS 'Which output token, from 0.';
COMMENT ON COLUMN pairs.position IS 'Place of the token in the whole sequence, from 0.';
COMMENT ON COLUMN pairs.token_id IS 'The token in A; that of B too, except in the last row of a request that diverged.';
COMMENT ON COLUMN pairs.d IS 'b_logprob - a_logprob in nat, of raw logprobs. Null where the tokens differ, where a side is unknown, and where both are the same infinity.';
COMMENT ON COLUMN pairs.d_processed IS 'b_processed_logprob - a_processed_logprob in nat: the log importance ratio. Null where the tokens differ, where a side is unknown, and where both are the same infinity.';
COMMENT ON COLUMN pairs.argmax_equal IS 'Whether both sides have the same first candidate in their raw logits.';

-- With what their requests have in common.
CREATE VIEW _pairs AS
SELECT m.match_id, m.temperature, p.*
FROM pairs AS p
JOIN _aligned AS m ON p.a_run_id = m.a_run_id AND p.a_request_id = m.a_request_id;
