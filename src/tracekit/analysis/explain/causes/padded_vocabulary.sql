SELECT
    place, request_id, output_index, position, a_logsumexp, b_logsumexp,
    $sign * ln(1 + exp($padding - ${other}_logsumexp::DOUBLE)) AS delta, d
FROM explained
WHERE d IS NOT NULL AND ${other}_logsumexp IS NOT NULL
