-- Which request of A is which of B, in three ways. The session chooses one and keeps it as the table _matches.
CREATE VIEW _matches_by_request_id AS
SELECT a.run_id AS a_run_id, a.request_id AS a_request_id, b.run_id AS b_run_id, b.request_id AS b_request_id
FROM a._keys AS a
JOIN b._keys AS b ON a.request_id = b.request_id;

CREATE VIEW _matches_by_external_id AS
SELECT a.run_id AS a_run_id, a.request_id AS a_request_id, b.run_id AS b_run_id, b.request_id AS b_request_id
FROM a.requests AS a
JOIN b.requests AS b
    ON a.external_id = b.external_id AND coalesce(a.sample_index, 0) = coalesce(b.sample_index, 0);

CREATE VIEW _prompts_in_order AS
SELECT 'a' AS side, run_id, request_id, prompt_hash, arrival_ns, external_id, sample_index FROM a.requests
UNION ALL
SELECT 'b' AS side, run_id, request_id, prompt_hash, arrival_ns, external_id, sample_index FROM b.requests;

CREATE VIEW _prompt_ordinals AS
SELECT side, run_id, request_id, prompt_hash, row_number() OVER equals AS ordinal
FROM _prompts_in_order
WHERE prompt_hash IS NOT NULL
WINDOW equals AS (
    PARTITION BY side, prompt_hash ORDER BY arrival_ns, external_id, sample_index, run_id, request_id
);

CREATE VIEW _matches_by_prompt AS
SELECT a.run_id AS a_run_id, a.request_id AS a_request_id, b.run_id AS b_run_id, b.request_id AS b_request_id
FROM _prompt_ordinals AS a
JOIN _prompt_ordinals AS b ON a.prompt_hash = b.prompt_hash AND a.ordinal = b.ordinal
WHERE a.side = 'a' AND b.side = 'b';

-- External ids name requests only where each occurs once in its trace, and some occur in both.
CREATE VIEW _external_ids_usable AS
SELECT coalesce(bool_and(num_a <= 1 AND num_b <= 1), false) AND coalesce(bool_or(num_a = 1 AND num_b = 1), false) AS usable
FROM (
    SELECT count(*) FILTER (side = 'a') AS num_a, count(*) FILTER (side = 'b') AS num_b
    FROM _prompts_in_order
    WHERE external_id IS NOT NULL
    GROUP BY external_id, coalesce(sample_index, 0)
);

-- num_delivered: tokens that both clients got, as far as it is known.
CREATE VIEW _find_matches AS
SELECT
    row_number() OVER (ORDER BY a_run_id, a_request_id, b_run_id, b_request_id) AS match_id,
    m.*,
    least(coalesce(a.num_output_tokens, 2147483647), coalesce(b.num_output_tokens, 2147483647)) AS num_delivered
FROM (
    FROM _matches_by_request_id WHERE getvariable('alignment') = 'request_id'
    UNION ALL
    FROM _matches_by_external_id WHERE getvariable('alignment') = 'external_id'
    UNION ALL
    FROM _matches_by_prompt WHERE getvariable('alignment') = 'prompt'
) AS m
LEFT JOIN a.outcomes AS a ON m.a_run_id = a.run_id AND m.a_request_id = a.request_id
LEFT JOIN b.outcomes AS b ON m.b_run_id = b.run_id AND m.b_request_id = b.request_id;
