-- place: 38
-- unit: ratio
-- meaning: mean(min(rho, 2)): the mean weight of truncated importance sampling.
-- source: verl rollout_corr/rollout_is_mean (C = 2)
-- bases: processed
-- neutral: 1
-- tokens
sum(least(rho, 2)) AS tis
-- value
tis / num
