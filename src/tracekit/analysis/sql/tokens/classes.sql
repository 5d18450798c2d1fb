-- Where a token stands in its request, and how sure of it the model was.
CREATE VIEW token_classes AS
SELECT
    t.run_id, t.request_id, t.output_index, t.position, t.step_id, t.token_id, t.logprob, t.top1_margin,
    t.output_index = 0 AS is_first,
    t.output_index = o.num_output_tokens - 1 AS is_last,
    list_contains(r.stop_token_ids, t.token_id) AS is_stop_token,
    t.output_index = o.num_output_tokens - 1 AND o.finish_reason = 'stop' AS ends_by_stop,
    exp(t.logprob::DOUBLE) >= 0.5 AS is_confident,
    CASE
        WHEN isnan(t.logprob) THEN NULL
        WHEN t.logprob >= ln(0.9::DOUBLE) THEN 'p >= 0.9'
        WHEN t.logprob >= ln(0.5::DOUBLE) THEN '0.5 <= p < 0.9'
        WHEN t.logprob >= ln(0.1::DOUBLE) THEN '0.1 <= p < 0.5'
        WHEN t.logprob >= ln(0.01::DOUBLE) THEN '0.01 <= p < 0.1'
        WHEN t.logprob IS NOT NULL THEN 'p < 0.01'
    END AS probability_class,
    CASE
        WHEN isnan(t.top1_margin) THEN NULL
        WHEN t.top1_margin = 0 THEN 'tie'
        WHEN t.top1_margin < 0.125 THEN 'under 0.125'
        WHEN t.top1_margin < 1 THEN '0.125 to 1'
        WHEN t.top1_margin IS NOT NULL THEN '1 and more'
    END AS margin_class
FROM tokens AS t
LEFT JOIN (SELECT run_id, request_id, num_output_tokens, finish_reason FROM outcomes) AS o
    ON t.run_id = o.run_id AND t.request_id = o.request_id
LEFT JOIN (SELECT run_id, request_id, stop_token_ids FROM requests) AS r
    ON t.run_id = r.run_id AND t.request_id = r.request_id;
COMMENT ON VIEW token_classes IS 'Delivered tokens by where they stand and how sure of them the model was. Join it to pairs on a_run_id, a_request_id and output_index to group differences. One row a token.';
COMMENT ON COLUMN token_classes.run_id IS 'As in tokens.';
COMMENT ON COLUMN token_classes.request_id IS 'As in tokens.';
COMMENT ON COLUMN token_classes.output_index IS 'Which output token, from 0.';
COMMENT ON COLUMN token_classes.position IS 'Place of the token in the whole sequence, from 0.';
COMMENT ON COLUMN token_classes.step_id IS 'The step that sampled it.';
COMMENT ON COLUMN token_classes.token_id IS 'The token.';
COMMENT ON COLUMN token_classes.logprob IS 'Its raw logprob in nat.';
COMMENT ON COLUMN token_classes.top1_margin IS 'Largest raw logit minus the second largest; 0 for a tie.';
COMMENT ON COLUMN token_classes.is_first IS 'Whether it is the first output token.';
COMMENT ON COLUMN token_classes.is_last IS 'Whether it is the last token that the client got; null where the request has no outcome.';
COMMENT ON COLUMN token_classes.is_stop_token IS 'Whether it is among the ids that end the request, end-of-sequence included where the engine tells it; null where these are unknown.';
COMMENT ON COLUMN token_classes.ends_by_stop IS 'Whether it is the last token of a request that a stop token or stop string ended.';
COMMENT ON COLUMN token_classes.is_confident IS 'Whether its raw probability is at least 0.5.';
COMMENT ON COLUMN token_classes.probability_class IS 'Its raw probability: p >= 0.9, 0.5 <= p < 0.9, 0.1 <= p < 0.5, 0.01 <= p < 0.1, or p < 0.01.';
COMMENT ON COLUMN token_classes.margin_class IS 'Its top1_margin: tie (exactly 0), under 0.125 (one bf16 step of a logit between 16 and 32), 0.125 to 1, or 1 and more.';
