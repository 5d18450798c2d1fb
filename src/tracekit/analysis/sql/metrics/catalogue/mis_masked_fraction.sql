-- place: 41
-- unit: share
-- meaning: Share of sequences whose product of rho is over 3: masked importance sampling drops them.
-- source: TRL vllm_importance_sampling_mode sequence_mask; SkyRL product_sequence_mask_masked_ratio; verl rollout_corr/rollout_is_ratio_fraction_high of rollout_is sequence, which truncates such weights; slime
-- bases: processed
-- neutral: 0
-- impact: correction
-- sequences
(d_sum > ln(3::DOUBLE))::INTEGER AS mis_masked
-- value
mis_masked / num_sequences
