-- place: 13
-- unit: share
-- meaning: Share of tokens with abs(d) > 0.01.
-- source: tracekit: exceedance shares beside means that tails carry
-- neutral: 0
-- tokens
count_if(abs(d) > 0.01) AS abs_over_0_01
-- value
abs_over_0_01 / num
