-- place: 5
-- unit: nat
-- meaning: mean(exp(-d) - 1 + d). Where A sampled the tokens this estimates chi2(A, B) - KL(A, B), not KL(B, A).
-- source: NeMo-RL policy_kl_error
-- bases: processed
-- neutral: 0
-- tokens
sum(k3r) AS k3_reversed
-- value
k3_reversed / num
-- largest
greatest(k3(-d_min), k3(-d_max))
