-- KL between bounds, from the candidates of both sides; docs/distributions.md derives them.
-- Sums over tokens known to P; y is the logit in Q, null where unknown.
CREATE MACRO _mass(x, norm) AS coalesce(list_sum(list_transform(x, lambda v: exp(v - norm))), 0);
CREATE MACRO _mass_of_both(x, y, norm) AS
    coalesce(list_sum(list_transform(x, lambda v, i: CASE WHEN y[i] IS NOT NULL THEN exp(v - norm) END)), 0);
CREATE MACRO _inside(x, y, x_norm, y_norm) AS coalesce(list_sum(list_transform(x, lambda v, i: CASE
    WHEN v = '-inf'::DOUBLE THEN 0
    WHEN y[i] = '-inf'::DOUBLE THEN 'inf'::DOUBLE
    ELSE exp(v - x_norm) * ((v - x_norm) - (y[i] - y_norm)) END)), 0);
CREATE MACRO _at_most(x, y, x_norm, y_min) AS coalesce(list_sum(list_transform(x, lambda v, i: CASE
    WHEN v = '-inf'::DOUBLE THEN 0
    WHEN coalesce(y[i], y_min) = '-inf'::DOUBLE THEN 'inf'::DOUBLE
    ELSE exp(v - x_norm) * (v - coalesce(y[i], y_min)) END)), 0);

CREATE VIEW _known_sums AS
SELECT
    place, request_id, output_index, position, token_id, a_norm, b_norm, a_min, b_min,
    a_logits[-1] AS a_last, b_logits[-1] AS b_last, len(a_ids) AS a_num, len(b_ids) AS b_num,
    a_error, b_error, len(list_filter(b_at_a, lambda z: z IS NOT NULL)) AS num_known,
    coalesce(len(a_known) >= a_vocab_size, false) OR coalesce(a_logits[-1] = '-inf', false) AS a_is_whole,
    coalesce(len(b_known) >= b_vocab_size, false) OR coalesce(b_logits[-1] = '-inf', false) AS b_is_whole,
    _mass(a_known, a_norm) AS a_mass, _mass(b_known, b_norm) AS b_mass,
    _mass_of_both(a_known, b_at_a, a_norm) AS p, _mass_of_both(b_known, a_at_b, b_norm) AS q,
    _inside(a_known, b_at_a, a_norm, b_norm) AS inside_ab, _inside(b_known, a_at_b, b_norm, a_norm) AS inside_ba,
    _at_most(a_known, b_at_a, a_norm, b_min) AS at_most_ab, _at_most(b_known, a_at_b, b_norm, a_min) AS at_most_ba
FROM _known_pairs
WHERE isfinite(a_norm) AND isfinite(b_norm) AND NOT is_unbounded;

-- By how much true probabilities may be more than computed ones: exactly known where the whole row is, and never so
-- much that those of the known tokens exceed 1.
CREATE VIEW _known_scales AS
SELECT
    *,
    CASE WHEN a_is_whole THEN 1 / a_mass ELSE exp(-a_error) END AS a_low,
    CASE WHEN a_is_whole THEN 1 / a_mass ELSE least(exp(a_error), 1 / a_mass) END AS a_high,
    CASE WHEN b_is_whole THEN 1 / b_mass ELSE exp(-b_error) END AS b_low,
    CASE WHEN b_is_whole THEN 1 / b_mass ELSE least(exp(b_error), 1 / b_mass) END AS b_high,
    _float64_error() * (1 + abs(a_norm) + abs(b_norm)) AS slack
FROM _known_sums
WHERE a_mass * exp(-a_error) <= 1 AND b_mass * exp(-b_error) <= 1;

CREATE MACRO _kl_upper(at_most, mass, last, other_min, is_whole, norm, other_norm, low, high, other_low, slack) AS CASE
    WHEN isinf(at_most) THEN 'inf'::DOUBLE
    WHEN is_whole THEN greatest(_upper_at(at_most, low) + other_norm - norm - ln(other_low) + slack * (1 + abs(at_most)), 0)
    WHEN last IS NULL OR isinf(other_min) THEN 'inf'::DOUBLE
    ELSE greatest(
        _upper_at(at_most - mass * (last - other_min), _worst_scale(at_most - mass * (last - other_min), low, high))
        + last - other_min + other_norm - norm - ln(other_low) + slack * (1 + abs(at_most) + abs(last - other_min)), 0)
END;
CREATE MACRO _kl_at_least(inside, p, q, low, high, other_low, other_high, slack) AS CASE
    WHEN isinf(inside) THEN 'inf'::DOUBLE
    ELSE greatest(
        _kl_lower(_kl_inside(inside, p, q), p, least(p * low, 1), least(p * high, 1), least(q * other_low, 1), least(q * other_high, 1))
        - slack * (1 + abs(inside)), 0)
END;

CREATE VIEW kld_bounds AS
SELECT
    request_id, output_index, position, token_id, a_num AS a_num_candidates, b_num AS b_num_candidates, num_known,
    least(p, 1) AS a_known_mass, least(q, 1) AS b_known_mass,
    _kl_at_least(inside_ab, p, q, a_low, a_high, b_low, b_high, slack) AS kl_ab_lower,
    _kl_upper(at_most_ab, a_mass, a_last, b_min, a_is_whole, a_norm, b_norm, a_low, a_high, b_low, slack) AS kl_ab_upper,
    _kl_at_least(inside_ba, q, p, b_low, b_high, a_low, a_high, slack) AS kl_ba_lower,
    _kl_upper(at_most_ba, b_mass, b_last, a_min, b_is_whole, b_norm, a_norm, b_low, b_high, a_low, slack) AS kl_ba_upper
FROM _known_scales;
COMMENT ON VIEW kld_bounds IS 'Bounds that the KL divergence over the whole vocabulary lies between, from candidates alone, widened by what a recorded logsumexp may be off. Positions are left out whose logsumexp is unknown, a trainer''s, rounded to less than float32, or at odds with the candidates. One row a position.';
COMMENT ON COLUMN kld_bounds.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN kld_bounds.output_index IS 'Which output token, from 0.';
COMMENT ON COLUMN kld_bounds.position IS 'Place of the token in the whole sequence, from 0.';
COMMENT ON COLUMN kld_bounds.token_id IS 'The token in A.';
COMMENT ON COLUMN kld_bounds.a_num_candidates IS 'A: candidates kept.';
COMMENT ON COLUMN kld_bounds.b_num_candidates IS 'B: candidates kept.';
COMMENT ON COLUMN kld_bounds.num_known IS 'Tokens whose logit is known on both sides.';
COMMENT ON COLUMN kld_bounds.a_known_mass IS 'A: the probability of these tokens together.';
COMMENT ON COLUMN kld_bounds.b_known_mass IS 'B: the same.';
COMMENT ON COLUMN kld_bounds.kl_ab_lower IS 'KL(A, B) is at least this, in nat: all tokens not known on both sides are merged into one.';
COMMENT ON COLUMN kld_bounds.kl_ab_upper IS 'KL(A, B) is at most this, in nat; inf where nothing bounds it (logit_min of B unknown or -inf). Null where an engine''s vocabulary size is unknown, for then the error of its logsumexp is.';
COMMENT ON COLUMN kld_bounds.kl_ba_lower IS 'KL(B, A) is at least this, in nat.';
COMMENT ON COLUMN kld_bounds.kl_ba_upper IS 'KL(B, A) is at most this, in nat.';
