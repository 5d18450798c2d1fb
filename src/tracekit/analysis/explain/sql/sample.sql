SELECT
    place, temperature, is_penalised::DOUBLE AS is_penalised, a_value, a_raw, a_processed, a_kept_mass, logit, rest_size,
    rest_norm, rest_mean, logits
FROM _curves
JOIN (FROM explained SEMI JOIN _chosen USING (place) WHERE temperature <> 0) USING (place)
ORDER BY place
