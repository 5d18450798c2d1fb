SELECT e.place, request_id, output_index, position, a_logit, b_logit, $slope * CASE
        -- Rounded alike both sides' logits are the same number: all that is left between them is the rounding.
        WHEN rounded_to_bits(${full}_logit::DOUBLE, $bits) = ${rounded}_logit AND abs(r) <= _rounding_bound(${rounded}_logit, $bits) THEN r
        ELSE $sign * (${full}_logit::DOUBLE - rounded_to_bits(${full}_logit::DOUBLE, $bits))
    END AS delta, d
FROM (
    SELECT *, (b_logit::DOUBLE - a_logit::DOUBLE) - (b_logsumexp::DOUBLE - a_logsumexp::DOUBLE) AS r FROM explained
) AS e
WHERE d IS NOT NULL AND a_logit IS NOT NULL AND b_logit IS NOT NULL
