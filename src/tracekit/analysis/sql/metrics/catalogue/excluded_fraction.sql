-- place: 16
-- unit: share
-- meaning: Share of tokens with d = -inf: B gives them no probability at all.
-- source: tracekit: counted and shown, never clipped away
-- bases: processed
-- neutral: 0
-- tokens
count_if(d = '-inf'::DOUBLE) AS num_excluded
-- value
num_excluded / num
