-- place: 19
-- unit: probability
-- meaning: Standard deviation (n - 1) of abs(p_B - p_A).
-- source: verl training/rollout_probs_diff_std
-- bases: processed
-- neutral: 0
-- tokens
sum(abs(dp)) AS p_abs
sum(dp * dp) AS p_squared
-- value
CASE WHEN num > 1 THEN sqrt(greatest(p_squared - p_abs * p_abs / num, 0) / (num - 1)) END
