-- Where is the first divergence of each request?
SELECT
    r.external_id AS request,
    f.output_index,
    f.kind,
    token_text(f.a_argmax_token_id) AS rollout_prefers,
    token_text(f.b_argmax_token_id) AS fp32_prefers,
    round(f.a_top1_margin, 4) AS rollout_margin,
    round(f.b_top1_margin, 4) AS fp32_margin
FROM first_divergence f
JOIN a.requests r USING (request_id)
ORDER BY f.output_index NULLS LAST, request;
