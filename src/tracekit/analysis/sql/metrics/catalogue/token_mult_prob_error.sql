-- place: 8
-- unit: ratio
-- meaning: mean(exp(abs(d))): by which factor probabilities differ.
-- source: NeMo-RL token_mult_prob_error (norm: under 1.05)
-- bases: processed
-- neutral: 1
-- tokens
sum(greatest(rho, 1 / rho)) AS exp_abs
-- value
exp_abs / num
-- largest
exp(greatest(abs(d_min), abs(d_max)))
