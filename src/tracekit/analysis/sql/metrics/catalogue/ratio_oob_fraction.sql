-- place: 34
-- unit: share
-- meaning: Share of tokens with rho outside 0.8 to 1.2.
-- source: tracekit; needs no advantages
-- neutral: 0
-- headline: yes
-- impact: mismatch
-- tokens
count_if(_out_of_bounds(d)) AS out_of_bounds
-- value
out_of_bounds / num
