-- place: 21
-- unit: probability
-- meaning: mean(p_B - p_A) of the tokens: Δp.
-- source: llama.cpp mean Δp, there of a text's next token
-- bases: raw
-- neutral: 0
-- tokens
sum(dp) AS dp_sum
-- value
dp_sum / num
