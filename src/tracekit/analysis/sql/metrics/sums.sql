-- What each request contributes to all metrics, in one pass over the pairs. Put together from the catalogue, once with
-- the columns that only trainers write and once without.

-- The processed basis is taken over tokens that A drew, as far as the trainer's mask keeps them. Of a request's
-- temperature and of who was forced, sums of requests know.
CREATE VIEW _measured AS
SELECT *, exp(d) AS raw_rho, k3(d) AS raw_k3, exp(raw_a) AS raw_pa, exp(b_logprob::DOUBLE) - exp(raw_a) AS raw_dp,
    exp(d_drawn) AS rho, k3(d_drawn) AS k3, k3(-d_drawn) AS k3r, exp(drawn_a) AS pa,
    exp(b_processed_logprob::DOUBLE) - exp(drawn_a) AS dp
FROM (
    SELECT *, CASE WHEN d IS NOT NULL THEN a_logprob::DOUBLE END AS raw_a,
        CASE WHEN d_drawn IS NOT NULL THEN a_processed_logprob::DOUBLE END AS drawn_a
    FROM (
        SELECT *, $advantage AS advantage,
            CASE WHEN $kept THEN d_processed END AS d_drawn,
            CASE WHEN $kept THEN argmax_equal END AS argmax_drawn
        FROM pairs
    )
);

-- With all that a comparison shows, so that it reads the pairs once. A flip is a forced token whose first candidate
-- differs; it is clear where neither side ties.
CREATE VIEW _find_parts AS
SELECT
    a_run_id AS run_id, a_request_id AS request_id, a_forced AS forced, count(*) AS num_pairs,
    min(output_index) FILTER (flip AND a_top1_margin > 0 AND b_top1_margin > 0) AS clear_flip_index,
    min(output_index) FILTER (flip AND coalesce(NOT (a_top1_margin > 0 AND b_top1_margin > 0), true)) AS tied_flip_index,
    $token_sums
FROM (
    SELECT *, NOT argmax_equal AND a_token_id = b_token_id AND (a_forced OR b_forced) AS flip FROM _measured
)
GROUP BY run_id, a_request_id, a_forced;

CREATE MACRO _token_sums(by_, whole_) AS TABLE
SELECT NULL AS grp, * EXCLUDE (clear_flip_index, tied_flip_index) FROM _parts WHERE whole_
UNION ALL
SELECT
    by_ AS grp, a_run_id AS run_id, a_request_id AS request_id, a_forced AS forced, count(*) AS num_pairs,
    $token_sums
FROM _measured
WHERE NOT whole_
GROUP BY grp, a_run_id, a_request_id, a_forced;

-- Requests, with what decides where their sums belong: intervals resample groups where these are known.
CREATE VIEW _sequences AS
SELECT m.a_run_id AS run_id, m.a_request_id AS request_id, m.temperature,
    coalesce(r.group_id, r.parent_request_id, m.a_request_id) AS cluster
FROM _aligned AS m
LEFT JOIN a.requests AS r ON m.a_run_id = r.run_id AND m.a_request_id = r.request_id;

-- The raw basis takes all pairs, the processed one tokens that A sampled at a temperature above 0. Where all of these
-- were given to A (A is a replay), an ancestor sampled them: then these are taken, and the figures are descriptive.
CREATE MACRO _basis_sums(by_, whole_) AS TABLE
WITH sums AS MATERIALIZED (
    SELECT t.*, s.temperature, s.cluster FROM _token_sums(by_, whole_) AS t JOIN _sequences AS s USING (run_id, request_id)
),
drawn AS (SELECT *, bool_and(forced) OVER () AS all_forced FROM sums WHERE temperature > 0)
SELECT
    'raw' AS basis, true AS descriptive, grp, run_id, request_id, cluster,
    $raw_columns
FROM sums
UNION ALL
SELECT
    'processed' AS basis, all_forced AS descriptive, grp, run_id, request_id, cluster,
    $processed_columns
FROM drawn
WHERE forced = all_forced;

-- One row a basis, group and request.
CREATE MACRO _request_sums(by_, whole_) AS TABLE
SELECT *, (num > 0)::INTEGER AS num_sequences, $sequence_terms
FROM (
    SELECT
        basis, grp, run_id, request_id, any_value(cluster) AS cluster, bool_or(descriptive) AS descriptive,
        $over_parts
    FROM _basis_sums(by_, whole_)
    GROUP BY basis, grp, run_id, request_id
);
