SELECT place, request_id, output_index, position, top_p, top_k, min_p, ${side}_kept_mass, $sign * -ln(${side}_kept_mass::DOUBLE) AS delta, d
FROM explained
WHERE d IS NOT NULL AND ${side}_kept_mass > 0 AND ${side}_kept_mass < 0.99999
