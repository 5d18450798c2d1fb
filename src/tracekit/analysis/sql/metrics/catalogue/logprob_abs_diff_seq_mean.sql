-- place: 11
-- unit: nat
-- meaning: Mean over sequences of each sequence's mean of abs(d).
-- source: slime train_rollout_logprob_abs_diff
-- bases: processed
-- neutral: 0
-- tokens
sum(abs(d)) AS d_abs
-- sequences
d_abs / num AS d_abs_means
d_abs / num AS d_abs_mean_max
-- value
d_abs_means / num_sequences
-- largest
d_abs_mean_max
