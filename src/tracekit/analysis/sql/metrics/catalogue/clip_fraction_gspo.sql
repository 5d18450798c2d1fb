-- place: 37
-- unit: share
-- meaning: Share of sequences that GSPO clips: exp(mean(d)) over 1.0004 where the mean advantage is positive, under 0.9997 where it is negative.
-- source: GSPO; TRL clip_ratio/region_mean with importance_sampling_level sequence. verl's policy loss gspo counts the tokens of such sequences
-- bases: processed
-- neutral: 0
-- impact: ratio
-- tokens
count(d) FILTER (advantage IS NOT NULL) AS num_advantages
sum(advantage) AS advantage_sum
-- sequences
(num_advantages > 0)::INTEGER AS num_advantage_sequences
((advantage_sum > 0 AND d_sum / num > ln(1.0004::DOUBLE)) OR (advantage_sum < 0 AND d_sum / num < ln(0.9997::DOUBLE)))::INTEGER AS clipped_gspo
-- value
clipped_gspo / num_advantage_sequences
-- count
num_advantages
