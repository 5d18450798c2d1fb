-- All sums that the metrics need, in one pass over the pairs, for each request.
CREATE VIEW _request_sums AS
SELECT
    match_id,
    a_forced,
    any_value(temperature) AS temperature,
    count(*) AS num_pairs,
    count(argmax_equal) AS num_argmax,
    count_if(argmax_equal) AS num_argmax_equal,
    _scale(d) AS raw_scale,
    count(d) AS raw_num,
    sum(d) AS raw_sum,
    sum(k3(d)) AS raw_k3,
    sum(abs(d)) AS raw_abs,
    max(abs(d)) AS raw_abs_max,
    sum(_scaled_weight(d)) AS raw_weight,
    sum(_scaled_weight(d) * _scaled_weight(d)) AS raw_weight_squared,
    count_if(_out_of_bounds(d)) AS raw_out_of_bounds,
    _scale(d_processed) AS processed_scale,
    count(d_processed) AS processed_num,
    sum(d_processed) AS processed_sum,
    sum(k3(d_processed)) AS processed_k3,
    sum(abs(d_processed)) AS processed_abs,
    max(abs(d_processed)) AS processed_abs_max,
    sum(_scaled_weight(d_processed)) AS processed_weight,
    sum(_scaled_weight(d_processed) * _scaled_weight(d_processed)) AS processed_weight_squared,
    count_if(_out_of_bounds(d_processed)) AS processed_out_of_bounds
FROM _pairs
GROUP BY match_id, a_forced, raw_scale, processed_scale;

-- The processed basis takes tokens that A sampled at a temperature above 0. Where all such tokens of A were given
-- to it (A is a replay), an ancestor sampled them: then these are taken, and the figures are descriptive.
CREATE VIEW _basis_sums AS
WITH sums AS MATERIALIZED (FROM _request_sums),
drawn AS MATERIALIZED (SELECT *, bool_and(a_forced) OVER () AS all_forced FROM sums WHERE temperature > 0)
SELECT
    'raw' AS basis, true AS descriptive, match_id, num_argmax, num_argmax_equal, raw_scale AS scale, raw_num AS num,
    raw_sum AS sum, raw_k3 AS k3, raw_abs AS abs, raw_abs_max AS abs_max, raw_weight AS weight,
    raw_weight_squared AS weight_squared, raw_out_of_bounds AS out_of_bounds
FROM sums
UNION ALL
SELECT
    'processed', all_forced, match_id, num_argmax, num_argmax_equal, processed_scale, processed_num,
    processed_sum, processed_k3, processed_abs, processed_abs_max, processed_weight,
    processed_weight_squared, processed_out_of_bounds
FROM drawn
WHERE a_forced = all_forced;
