-- place: 31
-- unit: ratio
-- meaning: mean(rho).
-- source: NeMo-RL sampling_importance_ratio; SkyRL is_ratio_mean; TRL sampling/importance_sampling_ratio/mean, there of truncated or masked ratios
-- bases: processed
-- neutral: 1
-- headline: yes
-- tokens
sum(rho) AS weight
-- value
weight / num
-- largest
exp(d_max)
