-- Of a truncated distribution padding is no part. At a scale other than 1, the sum over the vocabulary follows from the
-- token's own logit and logprob.
SELECT
    place, request_id, output_index, position, a_logsumexp, b_logsumexp,
    CASE WHEN is_truncated THEN 0 ELSE $sign * ln(1 + exp($log_num + ($padding - $log_num) * scale - total)) END AS delta, d
FROM (
    SELECT *, $slope AS scale, $processed AND coalesce(${other}_kept_mass, 1) < 1 AS is_truncated,
        CASE WHEN scale = 1 THEN ${other}_logsumexp::DOUBLE ELSE ${other}_logit * scale - ${other}_processed END AS total
    FROM explained
)
WHERE d IS NOT NULL AND total IS NOT NULL
