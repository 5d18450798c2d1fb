SELECT place, request_id, output_index, position, temperature,
    $sign * (${side}_processed::DOUBLE + ln(${side}_kept_mass::DOUBLE) - tempered) AS delta, d
FROM (
    SELECT e.*, CASE WHEN temperature IN (0, 1) THEN ${side}_raw::DOUBLE
        ELSE logprob_scaled(c.logit, c.logits, c.rest_size, c.rest_norm, c.rest_mean, 1 / temperature) END AS tempered
    FROM explained AS e
    LEFT JOIN ${curves} AS c ON e.place = c.place
    WHERE $of
)
WHERE d IS NOT NULL AND tempered IS NOT NULL AND ${side}_kept_mass > 0 AND isfinite(${side}_processed)
