-- place: 6
-- unit: nat
-- meaning: mean(rho d - rho + 1): estimates KL(B, A) from tokens that A sampled, by importance weights.
-- source: the k3 estimator of Schulman with the roles exchanged
-- bases: processed
-- neutral: 0
-- tokens
sum(CASE WHEN rho = 0 THEN 1 ELSE rho * k3r END) AS reversed_k3
-- value
reversed_k3 / num
-- largest
greatest(_reversed_k3(d_min), _reversed_k3(d_max))
