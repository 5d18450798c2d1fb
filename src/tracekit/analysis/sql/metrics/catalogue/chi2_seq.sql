-- place: 30
-- unit: ratio
-- meaning: Mean over sequences of exp(2 sum(d)) - 1.
-- source: verl rollout_corr/chi2_seq, which clamps sums at ±20
-- bases: processed
-- neutral: 0
-- headline: yes
-- sequences
_expm1(2 * d_sum) AS chi2_seqs
_expm1(2 * d_sum) AS chi2_seq_max
-- value
chi2_seqs / num_sequences
-- largest
chi2_seq_max
