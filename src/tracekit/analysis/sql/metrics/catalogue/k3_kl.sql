-- place: 3
-- unit: nat
-- meaning: mean(rho - 1 - d): the k3 estimator of KL(A, B). Its mean is carried by its tail.
-- source: verl rollout_corr/k3_kl; prime-rl mismatch_kl; NeMo-RL gen_kl_error; TRL kl, there to the reference model; k3 of Schulman
-- neutral: 0
-- headline: yes
-- impact: distance
-- tokens
sum(k3) AS k3_sum
-- value
k3_sum / num
-- largest
greatest(k3(d_min), k3(d_max))
