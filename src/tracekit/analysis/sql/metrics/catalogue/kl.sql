-- place: 1
-- unit: nat
-- meaning: mean(-d): the k1 estimator of KL(A, B).
-- source: verl rollout_corr/kl; slime; k1 of Schulman, Approximating KL divergence
-- neutral: 0
-- headline: yes
-- value
0 - d_sum / num
-- largest
0 - d_min
