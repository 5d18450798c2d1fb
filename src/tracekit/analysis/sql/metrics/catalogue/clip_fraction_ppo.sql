-- place: 35
-- unit: share
-- meaning: Share of tokens that PPO and GRPO clip: rho over 1.2 where the advantage is positive, under 0.8 where it is negative. A is the old policy, or the rollout where old := rollout.
-- source: verl actor/pg_clipfrac; TRL clip_ratio/region_mean
-- bases: processed
-- neutral: 0
-- headline: yes
-- impact: ratio
-- tokens
count(d) FILTER (advantage IS NOT NULL) AS num_advantages
count_if((advantage > 0 AND d > ln(1.2::DOUBLE)) OR (advantage < 0 AND d < ln(0.8::DOUBLE))) AS clipped_ppo
-- value
clipped_ppo / num_advantages
-- count
num_advantages
