-- place: 25
-- unit: correlation
-- meaning: Pearson correlation of the logprobs of A and B; null where one is infinite.
-- source: llama.cpp Cor(ln(PPL(Q)), ln(PPL(base)))
-- bases: raw
-- neutral: 1
-- tokens
sum(a) AS a_sum
sum(a * a) AS a_squared
sum(a * d) AS a_d
sum(d * d) AS d_squared
-- value
_correlation(num, a_sum, d_sum, a_squared, d_squared, a_d)
