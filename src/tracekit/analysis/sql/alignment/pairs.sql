-- Aligned positions: what `pairs` shows, with the request's match and temperature.
CREATE VIEW _a_side AS
SELECT m.match_id, m.temperature, t.*
FROM a.tokens_all AS t
JOIN _aligned AS m ON t.run_id = m.a_run_id AND t.request_id = m.a_request_id
WHERE NOT t.is_prompt AND t.output_index < m.num_compared;

CREATE VIEW _b_side AS
SELECT m.match_id, t.*
FROM b.tokens_all AS t
JOIN _aligned AS m ON t.run_id = m.b_run_id AND t.request_id = m.b_request_id
WHERE NOT t.is_prompt AND t.output_index < m.num_compared;

CREATE VIEW _pairs AS
SELECT
    a.match_id, a.temperature,
    a.request_id, a.output_index, a.position, a.token_id,
    COLUMNS(a.* EXCLUDE (match_id, temperature)) AS 'a_\0',
    COLUMNS(b.* EXCLUDE (match_id)) AS 'b_\0',
    CASE WHEN a.token_id = b.token_id THEN _difference(b.logprob, a.logprob) END AS d,
    CASE WHEN a.token_id = b.token_id THEN _difference(b.processed_logprob, a.processed_logprob) END AS d_processed,
    a.argmax_token_id = b.argmax_token_id AS argmax_equal
FROM _a_side AS a
JOIN _b_side AS b ON a.match_id = b.match_id AND a.output_index = b.output_index;

CREATE VIEW pairs AS SELECT * EXCLUDE (match_id, temperature) FROM _pairs;
COMMENT ON VIEW pairs IS 'Positions that both traces delivered, aligned and proven to have equal context. A request ends at its first differing token, which is its last row. One row a position.';
COMMENT ON COLUMN pairs.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN pairs.output_index IS 'Which output token, from 0.';
COMMENT ON COLUMN pairs.position IS 'Place of the token in the whole sequence, from 0.';
COMMENT ON COLUMN pairs.token_id IS 'The token in A; that of B too, except in the last row of a request that diverged.';
COMMENT ON COLUMN pairs.d IS 'b_logprob - a_logprob in nat, of raw logprobs. Null where the tokens differ, where a side is unknown, and where both are the same infinity.';
COMMENT ON COLUMN pairs.d_processed IS 'b_processed_logprob - a_processed_logprob in nat: the log importance ratio. Null where the tokens differ, where a side is unknown, and where both are the same infinity.';
COMMENT ON COLUMN pairs.argmax_equal IS 'Whether both sides have the same first candidate in their raw logits.';
