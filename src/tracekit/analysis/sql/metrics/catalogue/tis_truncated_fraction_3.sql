-- place: 40
-- unit: share
-- meaning: Share of tokens with rho > 3.
-- source: TRL vllm_importance_sampling_clip_max, 3 by default; verl rollout_corr/rollout_is_ratio_fraction_high (C = 3)
-- bases: processed
-- neutral: 0
-- impact: correction
-- tokens
count_if(d > ln(3::DOUBLE)) AS tis_over_3
-- value
tis_over_3 / num
