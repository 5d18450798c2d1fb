-- Where does fp32 prefer another token first, and how near was the decision?
SELECT
    r.external_id AS request, r.temperature, f.output_index,
    token_text(f.a_argmax_token_id) AS bf16_prefers, token_text(f.b_argmax_token_id) AS fp32_prefers,
    f.a_top1_margin AS bf16_margin, f.b_top1_margin AS fp32_margin
FROM first_divergence AS f
JOIN a.requests AS r USING (request_id)
WHERE f.kind IS NOT NULL
ORDER BY f.output_index, request;
