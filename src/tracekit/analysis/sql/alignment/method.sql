-- By what requests are paired, and which trace may be a part of the other. The variables `align`, `partial` and
-- `any_tokenizer` are the caller's; those of them that are not set are null.
CREATE VIEW _keys AS
SELECT 'a' AS side, * FROM a._keys
UNION ALL
SELECT 'b' AS side, * FROM b._keys;

-- External ids name requests only where each occurs once in its trace, and some occur in both.
CREATE VIEW _external_ids_usable AS
SELECT coalesce(bool_and(num_a <= 1 AND num_b <= 1), false) AND coalesce(bool_or(num_a = 1 AND num_b = 1), false) AS usable
FROM (
    SELECT count(*) FILTER (side = 'a') AS num_a, count(*) FILTER (side = 'b') AS num_b
    FROM _keys
    WHERE external_id IS NOT NULL
    GROUP BY external_id, coalesce(sample_index, 0)
);

-- A replay says in its options that it took a part of its parent's requests; 'head' takes those with hidden states.
CREATE VIEW _selections AS
SELECT
    side, bool_or(backend = 'head' OR num_only IS NOT NULL OR sample IS NOT NULL OR "limit" IS NOT NULL) AS selects,
    bool_or(any_tokenizer = 'true') AS any_tokenizer,
    concat_ws(', ',
        CASE WHEN count(num_only) > 0 THEN format('{} by --where', any_value(num_only)) END,
        CASE WHEN count(sample) > 0 THEN format('--sample {}', any_value(sample)) END,
        CASE WHEN count("limit") > 0 THEN format('--limit {}', any_value("limit")) END,
        CASE WHEN bool_or(backend = 'head') THEN 'those with hidden states' END
    ) AS selection
FROM (
    SELECT side, backend, options ->> 'num_only' AS num_only, options ->> 'sample' AS sample,
        options ->> 'limit' AS "limit", options ->> 'any_tokenizer' AS any_tokenizer
    FROM (
        SELECT 'a' AS side, backend, CASE WHEN json_valid(options) THEN options END AS options FROM a.runs
        UNION ALL
        SELECT 'b' AS side, backend, CASE WHEN json_valid(options) THEN options END AS options FROM b.runs
    )
)
GROUP BY side;

-- a_part: why requests of B may lack a counterpart in A; null where they may not. Likewise b_part.
CREATE VIEW _find_alignment AS
SELECT
    CASE coalesce(asked, CASE WHEN related THEN 'request' WHEN usable THEN 'external' ELSE 'prompt' END)
        WHEN 'request' THEN 'request_id'
        WHEN 'external' THEN 'external_id'
        ELSE coalesce(asked, 'prompt')
    END AS method,
    CASE
        WHEN a.role = 'trainer' THEN 'A is a trainer''s trace'
        WHEN a.parent IN (b.trace_id, b.parent) AND sa.selects THEN 'A is a replay of a part: ' || sa.selection
    END AS a_part,
    CASE
        WHEN b.role = 'trainer' THEN 'B is a trainer''s trace'
        WHEN b.parent IN (a.trace_id, a.parent) AND sb.selects THEN 'B is a replay of a part: ' || sb.selection
    END AS b_part,
    coalesce(getvariable('partial')::BOOLEAN, false) AS partial,
    coalesce(getvariable('any_tokenizer')::BOOLEAN, false) OR coalesce(sa.any_tokenizer, false)
        OR coalesce(sb.any_tokenizer, false) AS any_tokenizer
FROM (SELECT getvariable('align')::VARCHAR AS asked)
CROSS JOIN a._manifest AS a
CROSS JOIN b._manifest AS b
CROSS JOIN (
    SELECT coalesce(a.trace_id IN (b.trace_id, b.parent), false) OR coalesce(a.parent IN (b.trace_id, b.parent), false) AS related
    FROM a._manifest AS a CROSS JOIN b._manifest AS b
)
CROSS JOIN _external_ids_usable
LEFT JOIN _selections AS sa ON sa.side = 'a'
LEFT JOIN _selections AS sb ON sb.side = 'b';
