-- place: 10
-- unit: nat
-- meaning: max(abs(d)).
-- source: TRL sampling/sampling_logp_difference/max; SkyRL minibatch_rollout_logprobs_abs_diff_max
-- interval: none
-- neutral: 0
-- headline: yes
-- value
greatest(abs(d_min), abs(d_max))
