-- place: 47
-- unit: share
-- meaning: Share of positions where the most likely token differs: 1 - same_top_p.
-- source: tracekit
-- bases: raw
-- neutral: 0
-- tokens
count(same) AS num_argmax
count_if(same) AS num_same
-- value
(num_argmax - num_same) / num_argmax
-- count
num_argmax
