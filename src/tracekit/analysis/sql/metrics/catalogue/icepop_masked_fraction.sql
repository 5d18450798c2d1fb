-- place: 42
-- unit: share
-- meaning: Share of tokens with rho outside 0.5 to 5, which IcePop masks.
-- source: NeMo-RL is_oob_ratio of ICE-POP; verl rollout_corr/rollout_is_oob_ratio; SkyRL token_mask_ratio; slime
-- bases: processed
-- neutral: 0
-- impact: correction
-- tokens
count_if(d < ln(0.5::DOUBLE) OR d > ln(5::DOUBLE)) AS icepop_masked
-- value
icepop_masked / num
