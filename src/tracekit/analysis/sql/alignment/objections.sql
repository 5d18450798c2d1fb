-- What stands against a comparison, in words, the most telling first. Each view names the first request it concerns.
CREATE VIEW _way_out AS
SELECT method, CASE method
    WHEN 'prompt' THEN 'compare traces of the same prompts'
    ELSE 'pair them by prompt (align=''prompt'', --align prompt), or compare traces of the same prompts'
END AS way_out
FROM _alignment;

CREATE VIEW _all_repeats AS
SELECT 'A' AS side, * FROM a._repeats UNION ALL SELECT 'B' AS side, * FROM b._repeats;

CREATE VIEW _first_unaligned AS
SELECT request_id, detail FROM _unaligned WHERE side = 'A' ORDER BY reason = 'no tokens', request_id LIMIT 1;

CREATE VIEW _first_refused AS
SELECT side, request_id, reason, detail, num
FROM (SELECT *, count(*) OVER () AS num FROM _unaligned WHERE refused)
ORDER BY side, request_id, run_id
LIMIT 1;

CREATE VIEW _tokenizers AS
SELECT a.tokenizer_hash AS a_hash, b.tokenizer_hash AS b_hash
FROM (SELECT DISTINCT a_run_id, b_run_id FROM _matches) AS m
JOIN (SELECT run_id, any_value(tokenizer_hash) AS tokenizer_hash FROM a.runs GROUP BY run_id) AS a ON m.a_run_id = a.run_id
JOIN (SELECT run_id, any_value(tokenizer_hash) AS tokenizer_hash FROM b.runs GROUP BY run_id) AS b ON m.b_run_id = b.run_id
WHERE a.tokenizer_hash <> b.tokenizer_hash
ORDER BY ALL
LIMIT 1;

CREATE VIEW _find_objections AS
SELECT 1 AS place, format(
    'trace {} holds {} output index(es) of request ''{}'' twice, first {}; remove the part that was written twice',
    side, count(*), request_id, min(output_index)
) AS message
FROM _all_repeats
GROUP BY side, run_id, request_id
QUALIFY row_number() OVER (ORDER BY side, request_id, run_id) = 1
UNION ALL
SELECT 2, format(
    'request ''{}'' of {} has {} counterparts by {}, for {}; {}', request_id, side, num, method,
    CASE method
        WHEN 'request_id' THEN 'it stands in several runs of one trace'
        ELSE 'its external id and sample index stand several times in a trace'
    END, way_out
)
FROM (
    SELECT i.request_id, upper(i.side) AS side, others.num
    FROM _identities AS i
    JOIN (SELECT DISTINCT side, identity, ordinal, num FROM _identities WHERE num > 1) AS others
        ON i.side <> others.side AND i.identity = others.identity AND i.ordinal = others.ordinal
    ORDER BY ALL
    LIMIT 1
)
CROSS JOIN _way_out
UNION ALL
SELECT 3, format(
    'none of {} request(s) of A has a counterpart among {} of B by {}{}; {}',
    (SELECT count(*) FROM a._keys), (SELECT count(*) FROM b._keys), method,
    coalesce((SELECT format(', first ''{}'': {}', request_id, detail) FROM _first_unaligned), ''),
    way_out
)
FROM _way_out
WHERE NOT EXISTS (FROM _matches)
UNION ALL
SELECT 4, format(
    'the tokenizers differ: hash {} in A, {} in B; {}; if only their files do, say so (any_tokenizer=True, --any-tokenizer)',
    a_hash, b_hash, coalesce((SELECT difference FROM _prompt_difference), 'the prompt ids of all requests are equal')
)
FROM _tokenizers
CROSS JOIN _alignment
WHERE NOT any_tokenizer
UNION ALL
SELECT 5, difference || CASE WHEN num > 1 THEN format(' (and so do those of {} more request(s))', num - 1) ELSE '' END || '; ' || way_out
FROM _prompt_difference
CROSS JOIN _way_out
UNION ALL
FROM (
    SELECT 6, format(
        '{}: trace {} does not hold its prompt, so equal context cannot be proven; record the prompt ids too',
        _named(a_request_id, b_request_id),
        CASE WHEN a.ids_digest IS NULL AND (a.prompt_hash IS NULL OR b.prompt_hash IS NOT NULL) THEN 'A' ELSE 'B' END
    )
    FROM _proof AS p
    JOIN a._keys AS a ON p.a_run_id = a.run_id AND p.a_request_id = a.request_id
    JOIN b._keys AS b ON p.b_run_id = b.run_id AND p.b_request_id = b.request_id
    WHERE num_both > 0 AND equal_prompts IS NULL
    ORDER BY a_request_id, b_request_id
    LIMIT 1
)
UNION ALL
FROM (
    SELECT 7, format(
        '{}: output token {} stands at position {} of the sequence in A, {} in B; one of the traces is malformed',
        _named(a_request_id, b_request_id), unequal_position_index, a_position, b_position
    )
    FROM _proof
    WHERE unequal_position_index < num_compared
    ORDER BY a_request_id, b_request_id
    LIMIT 1
)
UNION ALL
FROM (
    SELECT 8, format(
        '{}: the outputs are off by one: B has at output token i what A has at i {} 1, in {} request(s); '
        || 'write each token''s row under its own output_index',
        _named(a_request_id, b_request_id), CASE WHEN shift > 0 THEN '+' ELSE '-' END, count(*) OVER ()
    )
    FROM _shifted JOIN _proof USING (match_id)
    ORDER BY a_request_id, b_request_id
    LIMIT 1
)
UNION ALL
FROM (
    SELECT 9, format(
        '{}: they differ at the first output token, and that output of A is the one of request ''{}'' of B, whose '
        || 'prompt is another: prompts or outputs are swapped; compare traces that keep them together',
        _named(a_request_id, b_request_id), elsewhere_id
    )
    FROM _displaced JOIN _proof USING (match_id)
    ORDER BY a_request_id, b_request_id
    LIMIT 1
)
UNION ALL
SELECT 10, format(
    'request ''{}'' of {} has no counterpart by {}: {}{}; if one trace holds a part of the other, say so (partial=True, --partial)',
    request_id, side, method, detail, CASE WHEN num > 1 THEN format(' (and {} more)', num - 1) ELSE '' END
)
FROM _first_refused
CROSS JOIN _alignment;
