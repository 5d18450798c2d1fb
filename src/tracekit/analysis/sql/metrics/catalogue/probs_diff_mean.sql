-- place: 17
-- unit: probability
-- meaning: mean(abs(p_B - p_A)), of probabilities.
-- source: verl training/rollout_probs_diff_mean (norm: under 0.005 fine, over 0.01 bad)
-- bases: processed
-- neutral: 0
-- headline: yes
-- tokens
sum(abs(dp)) AS p_abs
max(abs(dp)) AS p_abs_max
-- value
p_abs / num
-- largest
p_abs_max
