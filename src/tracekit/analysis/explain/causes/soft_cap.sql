SELECT e.place, request_id, output_index, position, a_logit, b_logit,
    logprob_capped(c.logit, c.logits, c.rest_size, c.rest_norm, c.rest_mean, $cap, $slope)
    - logprob_scaled(c.logit, c.logits, c.rest_size, c.rest_norm, c.rest_mean, $slope)$kept AS delta, d
FROM explained AS e
JOIN _curves AS c ON e.place = c.place
WHERE d IS NOT NULL
