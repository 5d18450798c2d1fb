-- place: 36
-- unit: share
-- meaning: The same with DAPO's bounds, 0.8 and 1.28.
-- source: DAPO; verl actor/pg_clipfrac with clip_ratio_high 0.28; TRL clip_ratio/region_mean with epsilon_high 0.28
-- bases: processed
-- neutral: 0
-- impact: ratio
-- tokens
count(d) FILTER (advantage IS NOT NULL) AS num_advantages
count_if((advantage > 0 AND d > ln(1.28::DOUBLE)) OR (advantage < 0 AND d < ln(0.8::DOUBLE))) AS clipped_dapo
-- value
clipped_dapo / num_advantages
-- count
num_advantages
