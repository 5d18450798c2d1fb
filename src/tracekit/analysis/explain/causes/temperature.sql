SELECT place, request_id, output_index, position, ${side}_temperature, $sign * (tempered - ${side}_raw) AS delta, d
FROM (
    SELECT e.*, e.temperature AS a_temperature,
        CASE WHEN is_penalised THEN logprob_scaled(c.logit, c.logits, c.rest_size, c.rest_norm, c.rest_mean, 1 / e.temperature)
            ELSE ${side}_processed::DOUBLE + ln(${side}_kept_mass::DOUBLE) END AS tempered
    FROM explained AS e
    LEFT JOIN (FROM _curves SEMI JOIN (FROM explained WHERE is_penalised) USING (place)) AS c ON e.place = c.place
    WHERE e.temperature NOT IN (0, 1)
)
WHERE d IS NOT NULL AND isfinite(tempered - ${side}_raw)
