-- Where in which request the difference lies. Raw figures without intervals; the module metrics has those.
CREATE VIEW pair_requests AS
SELECT
    m.a_run_id, m.a_request_id AS request_id, m.b_run_id, m.b_request_id,
    coalesce(p.num_pairs, 0) AS num_pairs, coalesce(p.num_d, 0) AS num_d, p.mean_d, p.max_abs_d, p.mean_k3,
    coalesce(p.num_infinite, 0) AS num_infinite, f.first_divergence
FROM _aligned AS m
LEFT JOIN (
    SELECT
        match_id, count(*) AS num_pairs, count(d) AS num_d, avg(d) AS mean_d, max(abs(d)) AS max_abs_d,
        avg(k3(d)) AS mean_k3, count_if(isinf(d)) AS num_infinite
    FROM _pairs
    GROUP BY match_id
) AS p ON m.match_id = p.match_id
LEFT JOIN (SELECT a_run_id, a_request_id, output_index AS first_divergence FROM _divergence) AS f
    ON m.a_run_id = f.a_run_id AND m.a_request_id = f.a_request_id;
COMMENT ON VIEW pair_requests IS 'Aligned requests with the raw difference of their tokens, and where they first diverge. One row a pair of requests.';
COMMENT ON COLUMN pair_requests.a_run_id IS 'A: its run.';
COMMENT ON COLUMN pair_requests.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN pair_requests.b_run_id IS 'B: its run.';
COMMENT ON COLUMN pair_requests.b_request_id IS 'B: its id.';
COMMENT ON COLUMN pair_requests.num_pairs IS 'Positions compared.';
COMMENT ON COLUMN pair_requests.num_d IS 'Those of them with a known d.';
COMMENT ON COLUMN pair_requests.mean_d IS 'Mean of d = b_logprob - a_logprob in nat, raw.';
COMMENT ON COLUMN pair_requests.max_abs_d IS 'Largest abs(d) in nat.';
COMMENT ON COLUMN pair_requests.mean_k3 IS 'Mean of exp(d) - 1 - d, raw: a descriptive figure, which does not estimate KL.';
COMMENT ON COLUMN pair_requests.num_infinite IS 'Tokens with infinite d: one side excludes them.';
COMMENT ON COLUMN pair_requests.first_divergence IS 'The output token at which it first diverges, as in the view first_divergence; null where it never does.';
