-- place: 33
-- unit: share
-- meaning: The same of min(rho, 2).
-- source: verl rollout_corr/rollout_is_eff_sample_size (C = 2)
-- bases: processed
-- neutral: 1
-- impact: correction
-- tokens
sum(least(rho, 2)) AS tis
sum(least(rho, 2) * least(rho, 2)) AS tis_squared
-- value
tis * tis / (num * tis_squared)
