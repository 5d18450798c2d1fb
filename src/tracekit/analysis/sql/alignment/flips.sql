-- Where another token came out, and whether logits or random numbers made it: the same draw on both distributions.
CREATE VIEW flips AS
SELECT
    request_id, output_index, a_token_id, b_token_id, b_coupled_token_id AS coupled_token_id,
    CASE WHEN b_coupled_token_id = a_token_id THEN 'random numbers' WHEN b_coupled_token_id IS NOT NULL THEN 'logits'
    END AS cause
FROM pairs
WHERE a_token_id <> b_token_id OR (b_forced AND b_coupled_token_id <> a_token_id)
QUALIFY row_number() OVER (PARTITION BY a_run_id, request_id ORDER BY output_index) = 1;
-- Example: SELECT cause, count(*) FROM flips GROUP BY cause
COMMENT ON VIEW flips IS 'The first token of each request that differs, or would differ where B was given its tokens, and why: B must be a replay with --free coupled. One row a request that flips.';
COMMENT ON COLUMN flips.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN flips.output_index IS 'Which output token, from 0.';
COMMENT ON COLUMN flips.a_token_id IS 'The token in A.';
COMMENT ON COLUMN flips.b_token_id IS 'The token in B; that of A where B was given it.';
COMMENT ON COLUMN flips.coupled_token_id IS 'The token that the random numbers of A pick from the distribution of B.';
COMMENT ON COLUMN flips.cause IS 'logits: the same random numbers pick another token from the distribution of B. random numbers: they pick the same one, so B drew otherwise. Null where the draw cannot be made again.';
