-- place: 32
-- unit: share
-- meaning: (sum rho)² / (n sum rho²), over tokens. Null where squares of rho leave the range of doubles (d over 354).
-- source: verl rollout_corr/rollout_is_eff_sample_size, there of truncated weights; PipelineRL rl/ess, there of the current policy
-- neutral: 1
-- headline: yes
-- impact: mismatch
-- tokens
sum(rho) AS weight
sum(rho * rho) AS weight_squared
-- value
CASE WHEN isfinite(weight_squared) AND weight_squared > 0 THEN weight * weight / (num * weight_squared) END
