-- place: 14
-- unit: share
-- meaning: Share of tokens with abs(d) > 0.1.
-- source: tracekit: exceedance shares beside means that tails carry
-- neutral: 0
-- headline: yes
-- tokens
count_if(abs(d) > 0.1) AS abs_over_0_1
-- value
abs_over_0_1 / num
