-- What would change if a cause were fixed: the metrics of d, and of d less what the cause adds to it. Needs the tables `explained`
-- (compared tokens) and `_deltas` (what each cause adds to which token). Which metrics, and their bounds: the catalogue's.

-- Beside the pass of B that a request is compared with, its pass under the other policy, 'old' or 'current': of several
-- the one of the nearest step, of a step that was done again the last.
CREATE VIEW _impact_passes AS
SELECT m.match_id, m.b_request_id, p.policy, q.run_id AS other_run_id
FROM _aligned AS m
JOIN b._outputs AS o ON o.request_id = m.b_request_id
JOIN b._passes AS p ON m.b_run_id = p.run_id
JOIN b._passes AS q ON o.run_id = q.run_id
WHERE q.policy = CASE p.policy WHEN 'old' THEN 'current' WHEN 'current' THEN 'old' END
    AND q.source_run_id IS NOT DISTINCT FROM p.source_run_id AND q.distribution IS NOT DISTINCT FROM p.distribution
QUALIFY row_number() OVER (PARTITION BY m.match_id ORDER BY abs(q.trainer_step - p.trainer_step) NULLS LAST, q.place) = 1;

CREATE VIEW _impact_others AS
SELECT
    p.match_id, t.output_index, CASE p.policy WHEN 'old' THEN 'current' ELSE 'old' END AS policy,
    coalesce(t.processed_logprob, t.logprob)::DOUBLE AS other_value, t.advantage, t.loss_mask
FROM b.tokens_all AS t
JOIN _impact_passes AS p ON t.run_id = p.other_run_id AND t.request_id = p.b_request_id
WHERE NOT t.is_prompt;

CREATE VIEW _impact_trained AS
SELECT m.match_id, t.output_index, t.advantage, t.loss_mask
FROM b.tokens_all AS t
JOIN _aligned AS m ON t.run_id = m.b_run_id AND t.request_id = m.b_request_id
WHERE NOT t.is_prompt AND (t.advantage IS NOT NULL OR t.loss_mask IS NOT NULL);

-- Log ratios of the tokens that enter the loss. compared: B over A, B's policy being that of its pass; infinite: the same,
-- where one side gives the token no probability: means of d are taken without these, in which nothing would show. other: the other
-- pass over A. update: current over old, which no cause of a difference between A and B touches.
CREATE VIEW _impact_ratios AS
SELECT
    CASE WHEN isinf(e.d) THEN 'infinite' ELSE 'compared' END AS leg, p.policy, e.match_id, e.request_id, e.output_index, e.d, e.temperature,
    coalesce(t.advantage, o.advantage)::DOUBLE AS advantage
FROM explained AS e
LEFT JOIN (
    SELECT m.match_id, p.policy FROM _aligned AS m JOIN b._passes AS p ON m.b_run_id = p.run_id
) AS p ON e.match_id = p.match_id
LEFT JOIN _impact_trained AS t ON e.match_id = t.match_id AND e.output_index = t.output_index
LEFT JOIN _impact_others AS o ON e.match_id = o.match_id AND e.output_index = o.output_index
WHERE e.d IS NOT NULL AND coalesce(t.loss_mask, o.loss_mask, true)
UNION ALL
SELECT
    leg, CASE leg WHEN 'other' THEN o.policy END, e.match_id, e.request_id, e.output_index,
    CASE
        WHEN leg = 'other' THEN _difference(o.other_value, e.a_value)
        WHEN o.policy = 'current' THEN _difference(o.other_value, e.b_value)
        ELSE _difference(e.b_value, o.other_value)
    END AS d,
    e.temperature, coalesce(t.advantage, o.advantage)::DOUBLE AS advantage
FROM explained AS e
JOIN _impact_others AS o ON e.match_id = o.match_id AND e.output_index = o.output_index
CROSS JOIN (VALUES ('other'), ('update')) AS legs (leg)
LEFT JOIN _impact_trained AS t ON e.match_id = t.match_id AND e.output_index = t.output_index
WHERE e.d IS NOT NULL AND coalesce(t.loss_mask, o.loss_mask, true);

-- Fix 0 is none of the causes, and -1 all of them, which a single one is too.
CREATE VIEW _impact_fixes AS
WITH causes AS (
    SELECT cause, row_number() OVER (ORDER BY cause) AS number, count(*) OVER () AS num_causes
    FROM (SELECT DISTINCT cause FROM _deltas)
)
SELECT cause, number, CASE WHEN num_causes > 1 THEN number ELSE -1 END AS fix FROM causes
UNION ALL
SELECT NULL, NULL, -1 FROM causes WHERE number = 2;

-- Which causes add to a token, a bit each, and what they add up to.
CREATE VIEW _impact_touched AS
SELECT x.match_id, x.output_index, bit_or(1::BIGINT << f.number) AS causes, sum(x.delta) AS delta
FROM _deltas AS x
JOIN _impact_fixes AS f ON x.cause = f.cause
GROUP BY x.match_id, x.output_index;

-- A cause that makes a token impossible accounts for all that is to be known of it: the token is taken to agree without it.
CREATE MACRO _impact_without(d, delta) AS CASE WHEN isinf(delta) AND delta = d THEN 0 ELSE d - delta END;

-- With all that touches the tokens, and without it: tokens that the same causes touch are summed together, so that what
-- one cause leaves as it is need not be summed again for it.
CREATE VIEW _impact_kept AS
SELECT
    causes, fixed, leg, policy, match_id, bool_and(coalesce(temperature > 0, false)) AS drawn,
    $impact_token_sums
FROM (
    SELECT
        coalesce(x.causes, 0) AS causes, fixed, r.leg, r.policy, r.match_id, r.temperature, r.advantage,
        CASE WHEN fixed THEN _impact_without(r.d, x.delta) ELSE r.d END AS d
    FROM _impact_ratios AS r
    LEFT JOIN _impact_touched AS x ON r.match_id = x.match_id AND r.output_index = x.output_index
    CROSS JOIN (VALUES (false), (true)) AS stages (fixed)
    WHERE NOT fixed OR x.causes IS NOT NULL
)
GROUP BY causes, fixed, leg, policy, match_id;

-- Tokens that one of several causes touches, without it.
CREATE VIEW _impact_fixed AS
SELECT
    fix, leg, policy, match_id, bool_and(coalesce(temperature > 0, false)) AS drawn,
    $impact_token_sums
FROM (
    SELECT f.fix, r.leg, r.policy, r.match_id, r.temperature, r.advantage, _impact_without(r.d, x.delta) AS d
    FROM _impact_ratios AS r
    JOIN _deltas AS x ON r.match_id = x.match_id AND r.output_index = x.output_index
    JOIN _impact_fixes AS f ON x.cause = f.cause
    WHERE f.fix > 0 AND r.leg <> 'update'
)
GROUP BY fix, leg, policy, match_id;

CREATE VIEW _impact_sums AS
WITH kept AS MATERIALIZED (FROM _impact_kept)
SELECT
    fix, leg, policy, match_id, bool_and(drawn) AS drawn,
    $impact_over_parts
FROM (
    SELECT 0 AS fix, * EXCLUDE (causes, fixed) FROM kept WHERE NOT fixed
    UNION ALL
    SELECT f.fix, k.* EXCLUDE (causes, fixed)
    FROM kept AS k
    JOIN _impact_fixes AS f ON CASE
        WHEN f.fix = -1 THEN k.fixed OR k.causes = 0
        ELSE NOT k.fixed AND k.causes & (1::BIGINT << f.number) = 0
    END
    WHERE k.leg <> 'update'
    UNION ALL
    FROM _impact_fixed
)
GROUP BY fix, leg, policy, match_id;

-- Which ratios a mode is about. Where no pass has the policy that it needs, the compared side stands in for it.
CREATE VIEW _impact_modes AS
SELECT
    fix, mode, match_id, any_value(assumed) AS assumed, bool_and(drawn) AS drawn,
    $impact_over_parts
FROM (
    SELECT
        *, leg IN ('compared', 'infinite') AS of_b, coalesce(bool_or(policy = 'current') OVER (), false) AS has_current,
        coalesce(bool_or(policy = 'old') OVER (), false) AS has_old
    FROM _impact_sums
    WHERE num > 0
) AS s,
LATERAL (VALUES
    ('distance', leg = 'compared', false),
    ('mismatch', of_b, false),
    ('bypass', CASE WHEN has_current THEN coalesce(policy = 'current', false) ELSE of_b END, NOT has_current),
    ('update', leg = 'update', false),
    ('correction', CASE WHEN has_old THEN coalesce(policy = 'old', false) ELSE of_b END, NOT has_old)
) AS modes (mode, holds, assumed)
WHERE holds
GROUP BY fix, mode, match_id;

CREATE VIEW _impact_figures AS
SELECT fix, mode, assumed, drawn, num_sequences, unnest([
$impact_values
], recursive := true)
FROM (
    SELECT
        fix, mode, any_value(assumed) AS assumed, bool_and(drawn) AS drawn, count(*) AS num_sequences,
        $impact_over_requests
    FROM (SELECT *, $impact_sequence_terms FROM _impact_modes)
    GROUP BY fix, mode
);

CREATE VIEW _impact AS
WITH figures AS MATERIALIZED (FROM _impact_figures)
SELECT
    f.cause,
    CASE b.mode WHEN 'distance' THEN 'mismatch' WHEN 'update' THEN 'decoupled' WHEN 'correction' THEN 'decoupled' ELSE b.mode
    END AS mode,
    b.name,
    b.value AS before, CASE b.mode WHEN 'update' THEN b.value ELSE a.value END AS after, b.num_tokens, b.num_sequences,
    b.assumed, NOT b.drawn AS descriptive
FROM figures AS b
JOIN (VALUES $impact_kinds) AS kinds (name, kind)
    ON b.name = kinds.name AND kinds.kind = CASE b.mode WHEN 'bypass' THEN 'ratio' WHEN 'update' THEN 'ratio' ELSE b.mode END
JOIN metric_definitions AS m ON b.name = m.name
CROSS JOIN _impact_fixes AS f
LEFT JOIN figures AS a ON a.fix = f.fix AND a.mode = b.mode AND a.name = b.name
WHERE b.fix = 0 AND b.num_tokens > 0
ORDER BY f.fix = -1, f.fix, b.mode <> 'distance', b.mode <> 'mismatch', b.mode <> 'bypass', b.mode <> 'update', m.place;
