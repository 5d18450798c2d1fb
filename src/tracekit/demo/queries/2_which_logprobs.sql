-- Which logprobs do you compare? Mean difference, fp32 minus rollout, by how requests were sampled:
-- processed with processed, raw with raw, and raw with processed, which is the classic mistake.
SELECT
    r.temperature, r.top_p, r.repetition_penalty AS penalty, count(*) AS tokens,
    round(avg(d_processed), 4) AS processed, round(avg(d), 4) AS raw,
    round(avg(b_logprob - a_processed_logprob), 4) AS mixed_up
FROM pairs
JOIN a.requests AS r USING (request_id)
GROUP BY ALL
ORDER BY ALL;
