-- Bounds of KL(P, Q) from a few logits of each side; docs/distributions.md derives them.

-- How far a recorded logsumexp may be from the true one. A replay sums in pairs: right to 4e-7 (ADR 6); 2^-19 leaves
-- room for the rounding of logit - max. An engine on a CPU adds up 8 or more lanes one term at a time, each addition
-- right to 2^-24; a GPU's sum is better than that. Both are then rounded to float32.
CREATE MACRO _logsumexp_error(logsumexp, vocab_size, is_exact) AS
    CASE WHEN is_exact THEN 1.9073486328125e-6::DOUBLE ELSE (vocab_size / 8 + 32) * 5.9604644775390625e-8::DOUBLE END
    + abs(logsumexp::DOUBLE) * 2.384185791015625e-7::DOUBLE;

-- What float64 sums and logarithms may lose, as a share of the size of their terms.
CREATE MACRO _float64_error() AS 1e-12::DOUBLE;

CREATE MACRO _clamp(x, low, high) AS least(greatest(x, low), high);
CREATE MACRO _x_ln_ratio(x, y) AS CASE WHEN x <= 0 THEN 0 WHEN y <= 0 THEN 'inf'::DOUBLE ELSE x * (ln(x) - ln(y)) END;
-- A rest of Q that is a little too large makes the bound smaller only; of none, float64 would make an infinity.
CREATE MACRO _kl_of_two(p, q) AS _x_ln_ratio(p, q) + _x_ln_ratio(1 - p, 1 - q + 1e-13::DOUBLE);

-- The part of KL inside the set S, with the masses of S taken out: sum of p ln(p / q) - p_S ln(p_S / q_S), never negative.
CREATE MACRO _kl_inside(inside, p, q) AS CASE WHEN p > 0 THEN greatest(inside - p * (ln(p) - ln(greatest(q, 1e-300))), 0) ELSE 0 END;

-- The mass of S under P at which the lower bound is least, where that under Q is at its lower end.
CREATE MACRO _worst_mass(inside, p, q_low) AS CASE
    WHEN p <= 0 THEN 0 WHEN q_low >= 1 THEN 1 WHEN q_low <= 0 THEN 0
    ELSE 1 / (1 + (1 - q_low) / q_low * exp(least(inside / p, 700)))
END;
CREATE MACRO _lower_at(mass, inside, p, q_low, q_high) AS
    CASE WHEN p > 0 THEN mass / p * inside ELSE 0 END + _kl_of_two(mass, _clamp(mass, q_low, q_high));
CREATE MACRO _kl_lower(inside, p, p_low, p_high, q_low, q_high) AS
    _lower_at(_clamp(_worst_mass(inside, p, q_low), p_low, p_high), inside, p, q_low, q_high);

-- scale: by how much P is more than computed. The bound is slope * scale + ln(scale) + rest, which is concave.
CREATE MACRO _worst_scale(slope, low, high) AS CASE WHEN slope < 0 THEN _clamp(-1 / slope, low, high) ELSE high END;
CREATE MACRO _upper_at(slope, scale) AS slope * scale + ln(scale);
