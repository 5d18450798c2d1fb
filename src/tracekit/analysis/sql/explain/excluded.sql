-- Tokens that stand in no share, for d is not finite, and why. That top-p, top-k and min-p leave out another token where
-- logits differ a little is no fault; that a token has a value which its own request rules out is one.
CREATE VIEW excluded_tokens AS
-- Out of a list, rows are planned as the few that they mostly are: all tokens are then read past them, and not held.
WITH excluded AS MATERIALIZED (
    SELECT unnest(list(e), recursive := true)
    FROM (
        SELECT
            place, request_id, output_index, position, token_id, a_value, b_value, temperature, top_p, top_k, min_p,
            a_kept_mass, b_kept_mass, a_draft_index, b_draft_index, is_masked, is_penalised, a_run_id, b_run_id, b_request_id
        FROM explained
        WHERE d IS NOT NULL AND NOT isfinite(d)
    ) AS e
),
a_ranks AS (
    SELECT s.run_id, s.request_id, s.output_index, s.rank, s.kept_count, s.num_tied
    FROM a.tokens_all AS s
    SEMI JOIN excluded AS e
        ON s.run_id = e.a_run_id AND s.request_id = e.request_id AND s.output_index = e.output_index AND NOT s.is_prompt
),
b_ranks AS (
    SELECT t.run_id, t.request_id, t.output_index, t.rank, t.kept_count, t.num_tied
    FROM b.tokens_all AS t
    SEMI JOIN excluded AS e
        ON t.run_id = e.b_run_id AND t.request_id = e.b_request_id AND t.output_index = e.output_index AND NOT t.is_prompt
)
SELECT
    place, request_id, output_index, position, token_id, a_value, b_value, temperature, top_p, top_k, min_p, a_kept_mass,
    b_kept_mass, a_draft_index, b_draft_index,
    CASE
        WHEN isnan(a_value) OR isnan(b_value) THEN 'not_a_number'
        WHEN is_masked THEN 'mask'
        WHEN NOT a_truncates AND NOT b_truncates THEN 'sampler'
        WHEN (is_told_by_top_p AND a_kept_mass < top_p - 0.01) OR (b_is_told_by_top_p AND b_kept_mass < b_top_p - 0.01)
            OR (isfinite(a_value) AND a_is_outside) OR (isfinite(b_value) AND b_is_outside) THEN 'sampler'
        WHEN (top_p, top_k, min_p) IS DISTINCT FROM (b_top_p, b_top_k, b_min_p) THEN 'parameters'
        ELSE 'edge'
    END AS cause
FROM (
    SELECT
        e.*, r.top_p AS b_top_p, r.top_k AS b_top_k, r.min_p AS b_min_p,
        coalesce(e.top_p < 1 OR e.top_k > 0 OR e.min_p > 0, false) AS a_truncates,
        coalesce(r.top_p < 1 OR r.top_k > 0 OR r.min_p > 0, false) AS b_truncates,
        a_truncates AND coalesce(e.top_k, 0) <= 0 AND coalesce(e.min_p, 0) = 0 AS is_told_by_top_p,
        b_truncates AND coalesce(r.top_k, 0) <= 0 AND coalesce(r.min_p, 0) = 0 AS b_is_told_by_top_p,
        coalesce(NOT is_penalised AND s.rank > s.kept_count + s.num_tied, false) AS a_is_outside,
        coalesce(NOT is_penalised AND t.rank > t.kept_count + t.num_tied, false) AS b_is_outside
    FROM excluded AS e
    LEFT JOIN b.requests AS r ON e.b_run_id = r.run_id AND e.b_request_id = r.request_id
    LEFT JOIN a_ranks AS s
        ON e.a_run_id = s.run_id AND e.request_id = s.request_id AND e.output_index = s.output_index
    LEFT JOIN b_ranks AS t
        ON e.b_run_id = t.run_id AND e.b_request_id = t.request_id AND e.output_index = t.output_index
);
-- Example: SELECT cause, count(*) FROM excluded_tokens GROUP BY cause
COMMENT ON VIEW excluded_tokens IS 'Compared tokens of which d is not finite, so that no share counts them, and why. One row a token.';
COMMENT ON COLUMN excluded_tokens.place IS 'As in explained.';
COMMENT ON COLUMN excluded_tokens.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN excluded_tokens.output_index IS 'Which output token, from 0.';
COMMENT ON COLUMN excluded_tokens.position IS 'Place of the token in the whole sequence, from 0.';
COMMENT ON COLUMN excluded_tokens.token_id IS 'The token.';
COMMENT ON COLUMN excluded_tokens.a_value IS 'As in explained; -inf where A excludes the token.';
COMMENT ON COLUMN excluded_tokens.b_value IS 'B: the same.';
COMMENT ON COLUMN excluded_tokens.temperature IS 'A: of the request.';
COMMENT ON COLUMN excluded_tokens.top_p IS 'A: of the request.';
COMMENT ON COLUMN excluded_tokens.top_k IS 'A: of the request.';
COMMENT ON COLUMN excluded_tokens.min_p IS 'A: of the request.';
COMMENT ON COLUMN excluded_tokens.a_kept_mass IS 'A: probability that truncation kept.';
COMMENT ON COLUMN excluded_tokens.b_kept_mass IS 'B: the same.';
COMMENT ON COLUMN excluded_tokens.a_draft_index IS 'A: place among the tokens of one speculative draft.';
COMMENT ON COLUMN excluded_tokens.b_draft_index IS 'B: the same.';
COMMENT ON COLUMN excluded_tokens.cause IS 'not_a_number: a side has NaN; mask: the request allows some tokens only; sampler: a side that truncates nothing excludes it, top-p kept less than it was asked to keep, or one that is kept ranks behind as many as were kept; parameters: sides were asked to truncate otherwise; edge: logits differ, and with them what truncation keeps.';
