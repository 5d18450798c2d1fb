-- The table that llama.cpp's perplexity tool prints with --kl-divergence; its percentiles interpolate as quantile_cont.
CREATE VIEW kld_summary AS
WITH figures AS MATERIALIZED (
    SELECT
        count(*) AS num_positions,
        quantile_cont(kl_llama_cpp, [0, 0.001, 0.01, 0.05, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1]) AS kld,
        quantile_cont(kl_ab, [0, 0.001, 0.01, 0.05, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1]) AS kl_ab,
        quantile_cont(delta_p, [0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1]) AS delta_p,
        avg(kl_llama_cpp) AS mean_kld, avg(kl_ab) AS mean_kl_ab, avg(delta_p) AS mean_delta_p,
        sqrt(avg(delta_p * delta_p)) AS rms_delta_p, avg(same_top::INTEGER) AS same_top, count(delta_p) AS num_delta_p
    FROM kld
)
SELECT u.name, u.value, u.exact, u.num_positions
FROM figures, LATERAL (
    SELECT 0 AS place, 'Mean KLD' AS name, mean_kld AS value, mean_kl_ab AS exact, num_positions
    UNION ALL
    SELECT
        1 + generate_subscripts(kld, 1),
        unnest(['Minimum KLD', '0.1% KLD', '1.0% KLD', '5.0% KLD', '10.0% KLD', 'Median KLD', '90.0% KLD', '95.0% KLD', '99.0% KLD', '99.9% KLD', 'Maximum KLD']),
        unnest(kld), unnest(kl_ab), num_positions
    UNION ALL
    SELECT 20, 'Mean Δp', mean_delta_p, mean_delta_p, num_delta_p
    UNION ALL
    SELECT 21, 'RMS Δp', rms_delta_p, rms_delta_p, num_delta_p
    UNION ALL
    SELECT
        22 + generate_subscripts(delta_p, 1),
        unnest(['Minimum Δp', '0.1% Δp', '1.0% Δp', '5.0% Δp', '10.0% Δp', '25.0% Δp', 'Median Δp', '75.0% Δp', '90.0% Δp', '95.0% Δp', '99.0% Δp', '99.9% Δp', 'Maximum Δp']),
        unnest(delta_p), unnest(delta_p), num_delta_p
    UNION ALL
    SELECT 40, 'Same top p', same_top, same_top, num_positions
) AS u
ORDER BY u.place;
COMMENT ON VIEW kld_summary IS 'What llama.cpp prints of two sets of whole logits rows, under its names, with A as the base. One row a figure.';
COMMENT ON COLUMN kld_summary.name IS 'The name in llama.cpp. KLD: KL(A, B) in nat. Δp: probability of the text''s next token in B minus that in A (llama.cpp prints percent). Same top p: share of positions with equal first candidate.';
COMMENT ON COLUMN kld_summary.value IS 'The figure as llama.cpp defines it: KLD without the vocabulary entries whose logprob in A is at most -16.';
COMMENT ON COLUMN kld_summary.exact IS 'The same over all entries of the vocabulary.';
COMMENT ON COLUMN kld_summary.num_positions IS 'Positions it was computed from.';
