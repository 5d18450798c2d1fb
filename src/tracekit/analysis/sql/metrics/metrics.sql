-- From the sums of requests to the field's metrics.
CREATE VIEW _totals AS
WITH sums AS MATERIALIZED (FROM _basis_sums),
largest AS (SELECT basis, max(scale) AS largest_scale FROM sums GROUP BY basis),
tokens AS (
    SELECT
        basis, bool_or(descriptive) AS descriptive, sum(num)::BIGINT AS num, sum(sum) AS sum, sum(k3) AS k3,
        sum(abs) AS abs, max(abs_max) AS abs_max, sum(out_of_bounds) AS out_of_bounds,
        sum(num_argmax)::BIGINT AS num_argmax, sum(num_argmax_equal) AS num_argmax_equal,
        sum(weight * exp(coalesce(scale - largest_scale, 0))) AS weight,
        sum(weight_squared * exp(2 * coalesce(scale - largest_scale, 0))) AS weight_squared
    FROM sums JOIN largest USING (basis)
    GROUP BY basis
),
sequences AS (
    SELECT basis, avg(exp(-mean)) AS ppl_ratio
    FROM (SELECT basis, match_id, sum(sum) / sum(num) AS mean FROM sums GROUP BY basis, match_id HAVING sum(num) > 0)
    GROUP BY basis
)
SELECT b.basis, coalesce(t.descriptive, b.basis = 'raw') AS descriptive, t.* EXCLUDE (basis, descriptive), s.ppl_ratio
FROM (VALUES ('raw'), ('processed')) AS b (basis)
LEFT JOIN tokens AS t ON b.basis = t.basis
LEFT JOIN sequences AS s ON b.basis = s.basis;

CREATE VIEW metrics AS
WITH totals AS MATERIALIZED (FROM _totals),
named AS (
    SELECT basis, descriptive, 1 AS place, 'kl' AS name, 0 - sum / num AS value, num AS num_tokens FROM totals
    UNION ALL
    SELECT basis, descriptive, 2, 'k3_kl', k3 / num, num FROM totals
    UNION ALL
    SELECT basis, descriptive, 3, 'logprob_abs_diff_mean', abs / num, num FROM totals
    UNION ALL
    SELECT basis, descriptive, 4, 'logprob_abs_diff_max', abs_max, num FROM totals
    UNION ALL
    SELECT basis, descriptive, 5, 'ppl_ratio', ppl_ratio, num FROM totals
    UNION ALL
    SELECT basis, descriptive, 6, 'same_top_p', num_argmax_equal / num_argmax, num_argmax FROM totals
    UNION ALL
    SELECT basis, descriptive, 7, 'effective_sample_size', weight * weight / (num * weight_squared), num FROM totals
    UNION ALL
    SELECT basis, descriptive, 8, 'ratio_oob_fraction', out_of_bounds / num, num FROM totals
)
SELECT basis, name, CASE WHEN num_tokens > 0 THEN value::DOUBLE END AS value, coalesce(num_tokens, 0) AS num_tokens, descriptive
FROM named
ORDER BY basis = 'processed', place;
COMMENT ON VIEW metrics IS 'The field''s metrics of A against B, where d is the log ratio and rho = exp(d). kl: mean(-d). k3_kl: mean(rho - 1 - d). logprob_abs_diff_mean, _max: of abs(d). ppl_ratio: mean over requests of exp(mean(-d)) = PPL_B / PPL_A. same_top_p: share of positions with equal argmax. effective_sample_size: (sum rho)^2 / (n sum rho^2), token level. ratio_oob_fraction: share of tokens with rho outside [0.8, 1.2].';
COMMENT ON COLUMN metrics.basis IS 'raw: d of raw logprobs over all pairs. processed: d_processed over tokens that A sampled at temperature above 0; where all of these were forced in A (A is a replay), over the forced ones.';
COMMENT ON COLUMN metrics.name IS 'Name of the metric, as the field uses it.';
COMMENT ON COLUMN metrics.value IS 'The figure: nat for kl, k3_kl and logprob_abs_diff, else a ratio or share. Infinities are shown. Null where there is no token.';
COMMENT ON COLUMN metrics.num_tokens IS 'How many tokens it was computed from.';
COMMENT ON COLUMN metrics.descriptive IS 'True where the figure describes the data but does not estimate what its name says: the raw basis, and tokens that A did not sample itself.';
