-- place: 2
-- unit: nat
-- meaning: mean(d²) / 2: the k2 estimator of KL(A, B), biased and of low variance.
-- source: k2 of Schulman, Approximating KL divergence; verl kl_penalty k2
-- neutral: 0
-- headline: yes
-- impact: distance
-- tokens
sum(d * d) AS d_squared
-- value
d_squared / num / 2
-- largest
greatest(d_min * d_min, d_max * d_max) / 2
