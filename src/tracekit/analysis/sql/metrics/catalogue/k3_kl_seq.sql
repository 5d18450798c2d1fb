-- place: 4
-- unit: nat
-- meaning: Mean over sequences of each sequence's mean of rho - 1 - d.
-- source: PipelineRL kl_new_old, there of the current policy
-- bases: processed
-- neutral: 0
-- tokens
sum(k3) AS k3_sum
-- sequences
k3_sum / num AS k3_means
k3_sum / num AS k3_mean_max
-- value
k3_means / num_sequences
-- largest
k3_mean_max
