-- place: 45
-- unit: share
-- meaning: Share of sequences with a token of rho < 1e-4, which drops the whole sequence.
-- source: slime; SkyRL outlier_seq_under_low_ratio; verl rollout_token_veto_threshold, which 0.9.1 has no more
-- bases: processed
-- neutral: 0
-- sequences
(d_min < ln(0.0001::DOUBLE))::INTEGER AS vetoed
-- value
vetoed / num_sequences
