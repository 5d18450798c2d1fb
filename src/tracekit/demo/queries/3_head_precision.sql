-- Was the head rounded? Between 16 and 32, bf16 numbers stand 0.125 apart: all of the rollout's logits lie on that grid,
-- and its two best candidates are often tied exactly; fp32 knows neither.
SELECT
    'rollout, bf16' AS side, count(*) AS logits, count_if(a_logit * 8 = round(a_logit * 8)) AS on_the_grid,
    count_if(a_top1_margin = 0) AS tied_at_the_top
FROM pairs WHERE abs(a_logit) BETWEEN 16 AND 32
UNION ALL
SELECT
    'replay, fp32', count(*), count_if(b_logit * 8 = round(b_logit * 8)), count_if(b_top1_margin = 0)
FROM pairs WHERE abs(b_logit) BETWEEN 16 AND 32
ORDER BY side DESC;
