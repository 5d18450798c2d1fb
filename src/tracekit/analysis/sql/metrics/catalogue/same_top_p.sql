-- place: 46
-- unit: share
-- meaning: Share of positions where both sides have the same most likely token.
-- source: llama.cpp Same top p
-- neutral: 1
-- headline: yes
-- tokens
count(same) AS num_argmax
count_if(same) AS num_same
-- value
num_same / num_argmax
-- count
num_argmax
