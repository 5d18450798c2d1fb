-- place: 22
-- unit: probability
-- meaning: Root of the mean of (p_B - p_A)².
-- source: llama.cpp RMS Δp
-- bases: raw
-- neutral: 0
-- headline: yes
-- tokens
sum(dp * dp) AS p_squared
-- value
sqrt(p_squared / num)
