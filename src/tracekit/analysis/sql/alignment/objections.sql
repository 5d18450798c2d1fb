-- What stands against a comparison. The session reads these before anything is subtracted.

-- A request that has more than one counterpart.
CREATE VIEW _ambiguous_matches AS
SELECT 'A' AS side, a_request_id AS request_id, count(*) AS num
FROM _matches GROUP BY a_run_id, a_request_id HAVING count(*) > 1
UNION ALL
SELECT 'B' AS side, b_request_id AS request_id, count(*) AS num
FROM _matches GROUP BY b_run_id, b_request_id HAVING count(*) > 1
ORDER BY request_id, side;

CREATE VIEW _prompts AS
SELECT
    m.match_id, m.a_request_id, m.b_request_id,
    a.prompt_token_ids AS a_prompt, b.prompt_token_ids AS b_prompt,
    a.prompt_hash AS a_hash, b.prompt_hash AS b_hash
FROM _matches AS m
LEFT JOIN a.requests AS a ON m.a_run_id = a.run_id AND m.a_request_id = a.request_id
LEFT JOIN b.requests AS b ON m.b_run_id = b.run_id AND m.b_request_id = b.request_id;

-- Prompts that differ, by ids where both sides hold them, else by hash. Positions count from 0, list entries from 1.
CREATE VIEW _unequal_prompts AS
SELECT
    a_request_id, b_request_id, len(a_prompt) AS a_length, len(b_prompt) AS b_length, entry - 1 AS position,
    a_prompt[entry] AS a_token_id, b_prompt[entry] AS b_token_id
FROM (
    SELECT *, list_position(
        list_transform(list_zip(a_prompt, b_prompt), lambda p: p[1] IS NOT DISTINCT FROM p[2]), false
    ) AS entry
    FROM _prompts
    WHERE a_prompt <> b_prompt OR ((a_prompt IS NULL OR b_prompt IS NULL) AND a_hash <> b_hash)
)
ORDER BY a_request_id;

CREATE VIEW _duplicate_tokens AS
SELECT 'A' AS side, run_id, request_id, num_tokens - num_indexes AS num FROM a._keys WHERE num_tokens > num_indexes
UNION ALL
SELECT 'B' AS side, run_id, request_id, num_tokens - num_indexes AS num FROM b._keys WHERE num_tokens > num_indexes
ORDER BY side, request_id, run_id;

CREATE VIEW _counts AS
SELECT
    (SELECT count(*) FROM _matches) AS num_matched,
    (SELECT count(*) FROM a._keys ANTI JOIN _matches ON run_id = a_run_id AND request_id = a_request_id) AS num_only_a,
    (SELECT count(*) FROM b._keys ANTI JOIN _matches ON run_id = b_run_id AND request_id = b_request_id) AS num_only_b;

-- Tokens on both sides, but no prompt to compare on one of them.
CREATE VIEW _unknown_prompts AS
SELECT p.a_request_id, p.b_request_id, CASE WHEN p.a_prompt IS NULL AND (p.a_hash IS NULL OR p.b_hash IS NOT NULL) THEN 'A' ELSE 'B' END AS side
FROM _prompts AS p
SEMI JOIN (SELECT match_id FROM _aligned WHERE num_both > 0) AS t ON p.match_id = t.match_id
WHERE (p.a_prompt IS NULL OR p.b_prompt IS NULL) AND (p.a_hash IS NULL OR p.b_hash IS NULL)
ORDER BY p.a_request_id;

CREATE VIEW _unequal_positions AS
SELECT a_request_id, b_request_id, unequal_position_index AS output_index
FROM _aligned
WHERE unequal_position_index < num_compared
ORDER BY a_request_id;
