-- place: 29
-- unit: ratio
-- meaning: mean(rho²) - 1: estimates chi2(B, A) over tokens. Negative where mean(rho) < 1.
-- source: verl rollout_corr/chi2_token, which clamps d at ±20
-- bases: processed
-- neutral: 0
-- tokens
sum(CASE WHEN abs(d) < 0.1 THEN (k3 + d) * (rho + 1) ELSE rho * rho - 1 END) AS chi2
-- value
chi2 / num
-- largest
_expm1(2 * d_max)
