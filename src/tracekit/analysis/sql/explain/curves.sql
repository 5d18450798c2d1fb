-- What a token's logprob becomes when all logits go through one monotone map, from the candidates that A kept and what its
-- row says of all the others: how many they are, what probability they have, and through the entropy which mean logit.
-- Taken as far below the last candidate as in a gamma distribution of shape 2 with that mean, they give ln(sum of exp(s z))
-- for s >= 1; below, a cubic has its value, slope and bend at 1, and the logarithm of their number at 0.
CREATE MACRO _rest_norm(logits, norm) AS
    norm + ln(greatest(1 - list_sum(list_transform(logits, lambda z: exp(z - norm))), 1e-12));
-- No less than if the rest were equal logits: where it has next to no probability, the entropy tells nothing of it.
CREATE MACRO _rest_mean(logits, norm, entropy, rest_norm, rest_size) AS least(
    logits[-1],
    greatest(
        rest_norm - rest_size,
        coalesce(
            (norm - entropy - list_sum(list_transform(logits, lambda z: z * exp(z - norm)))) / exp(rest_norm - norm),
            logits[-1]
        )
    )
);
CREATE MACRO _scaled_rest(h, at_0, at_1, mean, last) AS CASE
    WHEN h >= 0 THEN at_1 + h * last - 2 * ln(1 + h * (last - mean) / 2)
    ELSE at_1 + h * (mean + h * ((last - mean) ** 2 / 4 + h * (at_1 - mean + (last - mean) ** 2 / 4 - at_0)))
END;
CREATE MACRO _norm_of(mapped, rest) AS greatest(list_max(mapped), rest) + ln(
    list_sum(list_transform(mapped, lambda z: exp(z - greatest(list_max(mapped), rest))))
    + exp(rest - greatest(list_max(mapped), rest))
);

CREATE VIEW _curves AS
SELECT *, _rest_mean(logits, norm, entropy, rest_norm, rest_size) AS rest_mean
FROM (
    SELECT
        a.place, a.logit::DOUBLE AS logit, a.logsumexp::DOUBLE AS norm, a.entropy::DOUBLE AS entropy,
        a.top_logits::DOUBLE[] AS logits, _rest_norm(a.top_logits::DOUBLE[], a.logsumexp::DOUBLE) AS rest_norm,
        ln(greatest(coalesce(v.vocab_size, 100000) - len(a.top_logits), 1)) AS rest_size
    FROM _a_side AS a
    JOIN (SELECT run_id, max(vocab_size) AS vocab_size FROM a.runs GROUP BY run_id) AS v ON a.run_id = v.run_id
    WHERE len(a.top_logits) > 0
);

CREATE VIEW _b_curves AS
SELECT *, _rest_mean(logits, norm, entropy, rest_norm, rest_size) AS rest_mean
FROM (
    SELECT
        b.place, b.logit::DOUBLE AS logit, b.logsumexp::DOUBLE AS norm, b.entropy::DOUBLE AS entropy,
        b.top_logits::DOUBLE[] AS logits, _rest_norm(b.top_logits::DOUBLE[], b.logsumexp::DOUBLE) AS rest_norm,
        ln(greatest(coalesce(v.vocab_size, 100000) - len(b.top_logits), 1)) AS rest_size
    FROM _b_side AS b
    JOIN (SELECT run_id, max(vocab_size) AS vocab_size FROM b.runs GROUP BY run_id) AS v ON b.run_id = v.run_id
    WHERE len(b.top_logits) > 0
);

CREATE MACRO logprob_scaled(logit, logits, rest_size, rest_norm, rest_mean, scale) AS logit * scale - _norm_of(
    list_transform(logits, lambda z: z * scale), _scaled_rest(scale - 1, rest_size, rest_norm, rest_mean, logits[-1])
);
COMMENT ON MACRO logprob_scaled IS 'Logprob of a token when every logit is multiplied by scale (1 / temperature), from a token''s logit, the logits of candidates, and of all others the logarithm of their number, their logsumexp and their mean by probability.';

-- The mean logit of the rest under its own probabilities at a scale of 1 + h.
CREATE MACRO _scaled_mean(h, at_0, at_1, mean, last) AS least(last, CASE
    WHEN h >= 0 THEN last - (last - mean) / (1 + h * (last - mean) / 2)
    ELSE mean + h * ((last - mean) ** 2 / 2 + 3 * h * (at_1 - mean + (last - mean) ** 2 / 4 - at_0))
END);

CREATE MACRO _capped(z, cap) AS cap * (1 - 2 / (exp(2 * z / cap) + 1));
CREATE MACRO _cap_slope(z, cap) AS 1 - (_capped(z, cap) / cap) ** 2;
-- A cap is a scale around a logit of the rest: where it leaves the rest's mass.
CREATE MACRO _capped_mean(cap, scale, at_0, at_1, mean, last) AS
    _scaled_mean(scale * _cap_slope(mean, cap) - 1, at_0, at_1, mean, last);
CREATE MACRO _capped_around(z, cap, scale, at_0, at_1, mean, last) AS
    scale * (_capped(z, cap) - z * _cap_slope(z, cap)) + _scaled_rest(scale * _cap_slope(z, cap) - 1, at_0, at_1, mean, last);
CREATE MACRO _capped_rest(cap, scale, at_0, at_1, mean, last) AS
    _capped_around(_capped_mean(cap, scale, at_0, at_1, mean, last), cap, scale, at_0, at_1, mean, last);
CREATE MACRO logprob_capped(logit, logits, rest_size, rest_norm, rest_mean, cap, scale) AS
    _capped(logit, cap) * scale - _norm_of(
        list_transform(logits, lambda z: _capped(z, cap) * scale),
        _capped_rest(cap, scale, rest_size, rest_norm, rest_mean, logits[-1])
    );
COMMENT ON MACRO logprob_capped IS 'Logprob of a token when every logit z becomes scale * cap * tanh(z / cap), from what logprob_scaled takes.';

-- To the nearest number of so many bits behind the leading one: 7 for bf16, 10 for fp16.
CREATE MACRO rounded_to_bits(z, bits) AS CASE
    WHEN z = 0 OR NOT isfinite(z) THEN z
    ELSE round_even(z / 2::DOUBLE ** (floor(log2(abs(z))) - bits), 0) * 2::DOUBLE ** (floor(log2(abs(z))) - bits)
END;
COMMENT ON MACRO rounded_to_bits IS 'z rounded to so many bits behind the leading one, to even at ties: 7 for bf16, 10 for fp16 (where that is not subnormal).';

-- One step of the grid that a logit lies on: half a step for the token, and as much for the normaliser.
CREATE MACRO _rounding_bound(z, bits) AS 2::DOUBLE ** (floor(log2(greatest(abs(z), 1e-9))) - bits);
