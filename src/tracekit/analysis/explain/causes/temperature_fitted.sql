SELECT e.place, request_id, output_index, position, temperature,
    logprob_scaled(c.logit, c.logits, c.rest_size, c.rest_norm, c.rest_mean, 1 / $temperature)
    - logprob_scaled(c.logit, c.logits, c.rest_size, c.rest_norm, c.rest_mean, 1 / ($start)) AS delta, d
FROM explained AS e
JOIN _curves AS c ON e.place = c.place
WHERE d IS NOT NULL AND temperature <> 0
