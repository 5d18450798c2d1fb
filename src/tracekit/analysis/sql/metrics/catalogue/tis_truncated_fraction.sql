-- place: 39
-- unit: share
-- meaning: Share of tokens with rho > 2.
-- source: verl rollout_corr/rollout_is_ratio_fraction_high (C = 2); SkyRL tis_token_clip_high_ratio
-- bases: processed
-- neutral: 0
-- impact: correction
-- tokens
count_if(d > ln(2::DOUBLE)) AS tis_over_2
-- value
tis_over_2 / num
