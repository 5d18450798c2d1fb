-- How far the trainer's weights were ahead of those that a token was sampled under, and what that did to its ratio.
CREATE VIEW staleness AS
SELECT
    request_id, output_index, b_weight_version - a_weight_version AS lag,
    b_weight_version - a_kv_weight_version_min AS kv_lag, d, d_processed, a_weight_version, b_weight_version,
    a_weights_partial AS weights_partial, b_policy AS policy, b_trainer_step AS trainer_step,
    coalesce(a_loss_mask, b_loss_mask) AS loss_mask, a_forced AS forced
FROM pairs;
COMMENT ON VIEW staleness IS 'The rows of pairs beside the age of the weights they were sampled under, A being a rollout and B a trainer''s trace. At lag 0 both sides had the same weights: what differs there is the mismatch of engine and trainer. One row a position.';
COMMENT ON COLUMN staleness.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN staleness.output_index IS 'Which output token, from 0.';
COMMENT ON COLUMN staleness.lag IS 'b_weight_version - a_weight_version: weight changes between sampling and scoring. Null where a side does not know its weights.';
COMMENT ON COLUMN staleness.kv_lag IS 'b_weight_version - a_kv_weight_version_min: the same, of the oldest KV entry that the token attended to.';
COMMENT ON COLUMN staleness.d IS 'As in pairs: b_logprob - a_logprob in nat.';
COMMENT ON COLUMN staleness.d_processed IS 'As in pairs: b_processed_logprob - a_processed_logprob in nat, the log importance ratio.';
COMMENT ON COLUMN staleness.a_weight_version IS 'A: the weights that the token was sampled under.';
COMMENT ON COLUMN staleness.b_weight_version IS 'B: the weights that it was scored under.';
COMMENT ON COLUMN staleness.weights_partial IS 'A: sampled while a weight update was open, so lag is that of some of its weights only.';
COMMENT ON COLUMN staleness.policy IS 'B: whose logprob it is.';
COMMENT ON COLUMN staleness.trainer_step IS 'B: the trainer''s step.';
COMMENT ON COLUMN staleness.loss_mask IS 'Whether the token enters the loss; null where no side says so.';
COMMENT ON COLUMN staleness.forced IS 'Whether A was given the token: then it is no sample of A.';

CREATE VIEW staleness_by_lag AS
WITH lags AS (
    SELECT
        b_weight_version - a_weight_version AS lag, count(DISTINCT match_id) AS num_requests,
        count(d_processed) AS num_tokens, avg(-d_processed) AS kl, avg(k3(d_processed)) AS k3_kl,
        avg(abs(d_processed)) AS logprob_abs_diff_mean, max(abs(d_processed)) AS logprob_abs_diff_max,
        count_if(a_weights_partial) AS num_partial
    FROM _pairs
    WHERE temperature > 0 AND NOT a_forced AND coalesce(a_loss_mask, b_loss_mask, true) AND d_processed IS NOT NULL
    GROUP BY lag
)
SELECT
    lag, num_requests, num_tokens, kl, k3_kl, k3_kl - max(k3_kl) FILTER (lag = 0) OVER () AS k3_kl_over_lag_0,
    logprob_abs_diff_mean, logprob_abs_diff_max, num_partial
FROM lags
ORDER BY lag;
COMMENT ON VIEW staleness_by_lag IS 'The metrics of staleness apart from mismatch: of tokens that A sampled at a temperature above 0 and that the loss mask keeps, processed logprobs, by lag. Lag 0 is the mismatch of engine and trainer alone. One row a lag.';
COMMENT ON COLUMN staleness_by_lag.lag IS 'Weight changes between sampling and scoring; null where a side does not know its weights.';
COMMENT ON COLUMN staleness_by_lag.num_requests IS 'Requests with a token of this lag.';
COMMENT ON COLUMN staleness_by_lag.num_tokens IS 'Tokens of this lag.';
COMMENT ON COLUMN staleness_by_lag.kl IS 'mean(-d), as in metrics. Unit: nat.';
COMMENT ON COLUMN staleness_by_lag.k3_kl IS 'mean(rho - 1 - d), as in metrics. Unit: nat.';
COMMENT ON COLUMN staleness_by_lag.k3_kl_over_lag_0 IS 'k3_kl minus that of lag 0: what staleness adds to the mismatch. Null where no token has lag 0. Unit: nat.';
COMMENT ON COLUMN staleness_by_lag.logprob_abs_diff_mean IS 'mean(abs(d)). Unit: nat.';
COMMENT ON COLUMN staleness_by_lag.logprob_abs_diff_max IS 'max(abs(d)). Unit: nat.';
COMMENT ON COLUMN staleness_by_lag.num_partial IS 'Of the tokens, those sampled while a weight update was open.';
