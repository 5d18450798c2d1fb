-- place: 24
-- unit: ratio
-- meaning: exp(mean(-logprob_B)) of the compared tokens: perplexity in B.
-- source: llama.cpp Mean PPL(Q)
-- bases: raw
-- neutral: none
-- tokens
sum(a) AS a_sum
-- value
exp(0 - (a_sum + d_sum) / num)
