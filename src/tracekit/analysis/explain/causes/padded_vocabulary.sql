-- Of a truncated distribution padding is no part, but it changes what is kept: by how much, both sides recorded. At a scale
-- other than 1, the sum over the vocabulary follows from the token's own logit and logprob.
SELECT
    place, request_id, output_index, position, a_logsumexp, b_logsumexp,
    CASE
        WHEN NOT is_truncated THEN $sign * ln(1 + exp($log_num + ($padding - $log_num) * scale - total))
        WHEN $kept THEN
            $sign * ln(1 + exp($log_num + ($padding - $log_num) * scale - total + ln(${other}_kept_mass::DOUBLE)))
            + ln(a_kept_mass::DOUBLE / b_kept_mass)
        ELSE 0
    END AS delta, d
FROM (
    SELECT *, $slope AS scale, $processed AND coalesce(${other}_kept_mass, 1) < 1 AS is_truncated,
        CASE WHEN scale = 1 THEN ${other}_logsumexp::DOUBLE ELSE ${other}_logit * scale - ${other}_processed END AS total
    FROM explained
)
WHERE d IS NOT NULL AND total IS NOT NULL
