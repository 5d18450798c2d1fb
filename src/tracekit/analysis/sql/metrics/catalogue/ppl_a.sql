-- place: 23
-- unit: ratio
-- meaning: exp(mean(-logprob_A)) of the compared tokens: perplexity in A.
-- source: llama.cpp Mean PPL(base)
-- bases: raw
-- neutral: none
-- tokens
sum(a) AS a_sum
-- value
exp(0 - a_sum / num)
