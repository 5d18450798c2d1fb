-- place: 7
-- unit: nat
-- meaning: mean(ln cosh(d / 2)). It is called Jensen-Shannon by its authors; taken over tokens of A only, it is not that divergence.
-- source: NeMo-RL js_divergence_error
-- bases: processed
-- neutral: 0
-- tokens
sum(_half_ln_cosh(d, k3, k3r)) AS ln_cosh
-- value
ln_cosh / num
-- largest
greatest(_half_ln_cosh(d_min, k3(d_min), k3(-d_min)), _half_ln_cosh(d_max, k3(d_max), k3(-d_max)))
