SELECT place, request_id, output_index, position, a_logsumexp, b_logsumexp, a_logsumexp::DOUBLE - b_logsumexp AS delta, d
FROM explained
WHERE d IS NOT NULL AND a_logsumexp <> b_logsumexp
