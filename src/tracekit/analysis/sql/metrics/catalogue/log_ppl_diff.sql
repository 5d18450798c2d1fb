-- place: 27
-- unit: nat
-- meaning: Mean over sequences of mean(-d) = ln(PPL_B / PPL_A).
-- source: verl rollout_corr/log_ppl_diff
-- bases: processed
-- neutral: 0
-- sequences
0 - d_sum / num AS log_ppl_diffs
0 - d_sum / num AS log_ppl_diff_max
-- value
log_ppl_diffs / num_sequences
-- largest
log_ppl_diff_max
