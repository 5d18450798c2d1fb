-- place: 26
-- unit: ratio
-- meaning: Mean over sequences of exp(mean(-d)) = PPL_B / PPL_A.
-- source: verl rollout_corr/ppl_ratio
-- neutral: 1
-- headline: yes
-- sequences
exp(0 - d_sum / num) AS ppl_ratios
exp(0 - d_sum / num) AS ppl_ratio_max
-- value
ppl_ratios / num_sequences
-- largest
ppl_ratio_max
