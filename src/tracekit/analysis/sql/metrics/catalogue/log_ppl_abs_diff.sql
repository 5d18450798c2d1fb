-- place: 28
-- unit: nat
-- meaning: Mean over sequences of abs(mean(d)).
-- source: verl rollout_corr/log_ppl_abs_diff
-- bases: processed
-- neutral: 0
-- sequences
abs(d_sum / num) AS log_ppl_abs_diffs
abs(d_sum / num) AS log_ppl_abs_diff_max
-- value
log_ppl_abs_diffs / num_sequences
-- largest
log_ppl_abs_diff_max
