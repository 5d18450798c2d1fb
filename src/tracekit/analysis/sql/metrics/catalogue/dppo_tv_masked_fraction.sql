-- place: 44
-- unit: share
-- meaning: Share of tokens with p_B - p_A over 0.2 where the advantage is positive, under -0.2 where it is negative.
-- source: prime-rl DPPO-TV mask; verl policy loss dppo_tv, actor/pg_clipfrac
-- bases: processed
-- neutral: 0
-- tokens
count(d) FILTER (advantage IS NOT NULL) AS num_advantages
count_if((advantage > 0 AND dp > 0.2) OR (advantage < 0 AND dp < -0.2)) AS dppo_masked
-- value
dppo_masked / num_advantages
-- count
num_advantages
