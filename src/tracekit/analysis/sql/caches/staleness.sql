-- KV entries that older weights computed: a request that lives through a weight update attends to them.
CREATE VIEW kv_lags AS
SELECT
    run_id, weight_version - kv_weight_version_min AS kv_lag, count(*) AS num_tokens,
    count(DISTINCT request_id) AS num_requests, min(weight_version) AS first_version, max(weight_version) AS last_version,
    count_if(weights_partial) AS num_partial
FROM tokens
GROUP BY run_id, kv_lag;
COMMENT ON VIEW kv_lags IS 'Delivered tokens by how many weight versions their oldest KV entry lags behind the weights that sampled them. One row a run and lag.';
COMMENT ON COLUMN kv_lags.run_id IS 'The run.';
COMMENT ON COLUMN kv_lags.kv_lag IS 'weight_version - kv_weight_version_min; null where either is unknown.';
COMMENT ON COLUMN kv_lags.num_tokens IS 'Tokens with this lag.';
COMMENT ON COLUMN kv_lags.num_requests IS 'Requests that have such tokens.';
COMMENT ON COLUMN kv_lags.first_version IS 'The smallest weight version that sampled them.';
COMMENT ON COLUMN kv_lags.last_version IS 'The largest weight version that sampled them.';
COMMENT ON COLUMN kv_lags.num_partial IS 'Those of them that were sampled while a weight update was open.';
