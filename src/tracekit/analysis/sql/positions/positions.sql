-- Bins double in width: differences that grow with the length of the context show at a glance.
CREATE VIEW pair_positions AS
SELECT
    CASE WHEN bin = 0 THEN 0 ELSE (1::BIGINT << (bin - 1)) END AS first_position,
    (1::BIGINT << bin) - 1 AS last_position,
    count(*) AS num_pairs, count(d) AS num_d, avg(d) AS mean_d, max(abs(d)) AS max_abs_d, avg(k3(d)) AS mean_k3,
    count_if(isinf(d)) AS num_infinite
FROM (SELECT d, CASE WHEN position = 0 THEN 0 ELSE floor(log2(position))::INTEGER + 1 END AS bin FROM _pairs)
GROUP BY bin
ORDER BY bin;
COMMENT ON VIEW pair_positions IS 'The raw difference by place in the sequence, in bins 0, 1, 2 to 3, 4 to 7 and so on. One row a bin with pairs.';
COMMENT ON COLUMN pair_positions.first_position IS 'First place of the bin, from 0.';
COMMENT ON COLUMN pair_positions.last_position IS 'Last place of the bin.';
COMMENT ON COLUMN pair_positions.num_pairs IS 'Positions compared.';
COMMENT ON COLUMN pair_positions.num_d IS 'Those of them with a known d.';
COMMENT ON COLUMN pair_positions.mean_d IS 'Mean of d = b_logprob - a_logprob in nat, raw.';
COMMENT ON COLUMN pair_positions.max_abs_d IS 'Largest abs(d) in nat.';
COMMENT ON COLUMN pair_positions.mean_k3 IS 'Mean of exp(d) - 1 - d, raw: a descriptive figure, which does not estimate KL.';
COMMENT ON COLUMN pair_positions.num_infinite IS 'Tokens with infinite d: one side excludes them.';
