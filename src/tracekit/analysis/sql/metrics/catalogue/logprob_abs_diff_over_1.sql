-- place: 15
-- unit: share
-- meaning: Share of tokens with abs(d) > 1.
-- source: tracekit: exceedance shares beside means that tails carry
-- neutral: 0
-- tokens
count_if(abs(d) > 1) AS abs_over_1
-- value
abs_over_1 / num
