-- place: 20
-- unit: correlation
-- meaning: Pearson correlation of p_A and p_B, of probabilities, not of logprobs. Its error is within 1e-14 over the smaller variance of the two; null where nothing is left.
-- source: verl training/rollout_actor_probs_pearson_corr
-- bases: processed
-- neutral: 1
-- headline: yes
-- tokens
sum(pa - 1) AS qa
sum((pa - 1) * (pa - 1)) AS qa_squared
sum((pa - 1) * dp) AS qa_dp
sum(dp) AS dp_sum
sum(dp * dp) AS p_squared
-- value
_correlation(num, qa, dp_sum, qa_squared, p_squared, qa_dp)
