-- place: 12
-- unit: share
-- meaning: Share of tokens with abs(d) > 0.001.
-- source: tracekit: exceedance shares beside means that tails carry
-- neutral: 0
-- tokens
count_if(abs(d) > 0.001) AS abs_over_0_001
-- value
abs_over_0_001 / num
