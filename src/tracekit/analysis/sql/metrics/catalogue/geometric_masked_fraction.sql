-- place: 43
-- unit: share
-- meaning: Share of sequences whose geometric mean of rho is outside 0.999 to 1.002.
-- source: NeMo-RL is_oob_ratio of seq-mask-tis; SkyRL geo_sequence_mask_masked_ratio; verl rollout_rs seq_mean_k1, whose bounds are of 1 / rho
-- bases: processed
-- neutral: 0
-- impact: correction
-- sequences
(d_sum / num < ln(0.999::DOUBLE) OR d_sum / num > ln(1.002::DOUBLE))::INTEGER AS geometric_masked
-- value
geometric_masked / num_sequences
