-- Where tokens differ, and whether the distributions there do. A step is one of the grid of bf16 logits.
CREATE VIEW fork_causes AS
SELECT
    place, request_id, output_index, position, token_id AS a_token_id, b_token_id, temperature, a_top1_margin, b_top1_margin,
    CASE
        WHEN b_coupled_token_id = token_id THEN 'random_numbers'
        WHEN b_coupled_token_id IS NOT NULL THEN 'logits'
        WHEN temperature = 0 AND (a_top1_margin = 0 OR b_top1_margin = 0) THEN 'tie_break'
        WHEN temperature = 0 AND a_argmax_token_id = b_argmax_token_id THEN 'sampler'
        WHEN temperature = 0 AND least(a_top1_margin, b_top1_margin) <= step THEN 'rounding'
        WHEN temperature = 0 THEN 'logits'
        WHEN a_argmax_token_id = b_argmax_token_id AND abs(a_top1_margin - b_top1_margin) <= step
            AND abs(a_logsumexp - b_logsumexp) <= step THEN 'random_numbers'
        WHEN greatest(a_top1_margin, b_top1_margin) <= step AND abs(a_logsumexp - b_logsumexp) <= step
            THEN 'random_numbers'
        WHEN a_logsumexp IS NOT NULL AND b_logsumexp IS NOT NULL THEN 'logits'
    END AS cause
FROM (
    SELECT *, 2 * _rounding_bound(a_logsumexp, 7) AS step FROM explained WHERE is_fork
);
-- Example: SELECT cause, count(*) FROM fork_causes GROUP BY cause
COMMENT ON VIEW fork_causes IS 'Where A and B went on with different tokens, and why. One row a request that does.';
COMMENT ON COLUMN fork_causes.place IS 'As in explained.';
COMMENT ON COLUMN fork_causes.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN fork_causes.output_index IS 'Which output token, from 0.';
COMMENT ON COLUMN fork_causes.position IS 'Place of the token in the whole sequence, from 0.';
COMMENT ON COLUMN fork_causes.a_token_id IS 'The token in A.';
COMMENT ON COLUMN fork_causes.b_token_id IS 'The token in B.';
COMMENT ON COLUMN fork_causes.temperature IS 'Of the request in A.';
COMMENT ON COLUMN fork_causes.a_top1_margin IS 'A: margin of the first candidate.';
COMMENT ON COLUMN fork_causes.b_top1_margin IS 'B: margin of the first candidate.';
COMMENT ON COLUMN fork_causes.cause IS 'random_numbers: distributions agree and another number was drawn, tie_break: greedy, with an exact tie, rounding: greedy, with a margin of a rounding step, sampler: greedy, and one side did not take its first candidate, logits: the distributions differ. Null where that is not known.';
