-- The same by the step of A that sampled the token: batches, weight updates and preemptions are steps.
CREATE VIEW pair_steps AS
SELECT
    a_run_id, a_step_id, any_value(a_weight_version) AS a_weight_version, count(DISTINCT match_id) AS num_requests,
    count(*) AS num_pairs, count(d) AS num_d, avg(d) AS mean_d, max(abs(d)) AS max_abs_d, avg(k3(d)) AS mean_k3,
    count_if(isinf(d)) AS num_infinite
FROM _pairs
GROUP BY a_run_id, a_step_id;
COMMENT ON VIEW pair_steps IS 'The raw difference by the step of A that sampled the tokens. One row a step of A.';
COMMENT ON COLUMN pair_steps.a_run_id IS 'A: the run.';
COMMENT ON COLUMN pair_steps.a_step_id IS 'A: the step; null for tokens without one.';
COMMENT ON COLUMN pair_steps.a_weight_version IS 'A: the weight version in that step.';
COMMENT ON COLUMN pair_steps.num_requests IS 'Aligned requests that it sampled a token of.';
COMMENT ON COLUMN pair_steps.num_pairs IS 'Positions compared.';
COMMENT ON COLUMN pair_steps.num_d IS 'Those of them with a known d.';
COMMENT ON COLUMN pair_steps.mean_d IS 'Mean of d = b_logprob - a_logprob in nat, raw.';
COMMENT ON COLUMN pair_steps.max_abs_d IS 'Largest abs(d) in nat.';
COMMENT ON COLUMN pair_steps.mean_k3 IS 'Mean of exp(d) - 1 - d, raw: a descriptive figure, which does not estimate KL.';
COMMENT ON COLUMN pair_steps.num_infinite IS 'Tokens with infinite d: one side excludes them.';
