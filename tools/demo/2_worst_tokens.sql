-- The ten worst tokens, with the five best candidates of both sides
SELECT
    r.external_id AS request,
    p.output_index,
    token_text(p.token_id) AS token,
    round(p.a_logprob, 4) AS rollout,
    round(p.b_logprob, 4) AS fp32,
    round(p.d, 4) AS d,
    token_texts(p.a_top_token_ids[:5]) AS rollout_candidates,
    token_texts(p.b_top_token_ids[:5]) AS fp32_candidates
FROM pairs p
JOIN a.requests r USING (request_id)
ORDER BY abs(p.d) DESC
LIMIT 10;
