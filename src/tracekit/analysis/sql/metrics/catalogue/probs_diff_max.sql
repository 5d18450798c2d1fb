-- place: 18
-- unit: probability
-- meaning: max(abs(p_B - p_A)).
-- source: verl training/rollout_probs_diff_max
-- bases: processed
-- interval: none
-- neutral: 0
-- headline: yes
-- tokens
max(abs(dp)) AS p_abs_max
-- value
p_abs_max
