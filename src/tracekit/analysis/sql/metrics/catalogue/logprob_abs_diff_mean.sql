-- place: 9
-- unit: nat
-- meaning: mean(abs(d)).
-- source: TRL sampling/sampling_logp_difference/mean; SkyRL minibatch_rollout_logprobs_abs_diff_mean
-- neutral: 0
-- headline: yes
-- tokens
sum(abs(d)) AS d_abs
-- value
d_abs / num
-- largest
greatest(abs(d_min), abs(d_max))
