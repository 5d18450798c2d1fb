-- What did not align, and why. Requests without a counterpart speak against a comparison, unless there is a reason.
CREATE VIEW _find_lonely AS
SELECT k.*
FROM _keys AS k
ANTI JOIN (
    SELECT 'a' AS side, a_run_id AS run_id, a_request_id AS request_id FROM _matches
    UNION ALL
    SELECT 'b' AS side, b_run_id AS run_id, b_request_id AS request_id FROM _matches
) AS m ON k.side = m.side AND k.run_id = m.run_id AND k.request_id = m.request_id;

CREATE VIEW _find_unaligned AS
SELECT
    upper(l.side) AS side, l.run_id, l.request_id,
    CASE
        WHEN l.num_tokens = 0 THEN 'no tokens'
        WHEN part IS NOT NULL THEN 'not selected'
        WHEN l.first_index > 0 AND other_role <> 'record' THEN 'not scored'
        WHEN NOT list_contains(twin.hashes, l.prompt_hash) THEN 'retokenised'
        WHEN method = 'external_id' AND l.external_id IS NULL THEN 'no external id'
        WHEN method = 'prompt' AND l.prompt_hash IS NULL THEN 'no prompt'
        WHEN i.num > 1 OR others.num > 0 THEN 'several counterparts'
        WHEN equal_prompts.num > 0 THEN 'fewer equal prompts'
        ELSE 'no counterpart'
    END AS reason,
    CASE reason
        WHEN 'no tokens' THEN 'it has no output token to compare'
        WHEN 'not selected' THEN part
        WHEN 'not scored' THEN format('its rows begin at output token {}, and what follows a missing row is not scored', l.first_index)
        WHEN 'retokenised' THEN format('request ''{}'' of {} has the same prompt text with other ids', twin.request_id, other)
        WHEN 'no external id' THEN 'it has no external id to be paired by'
        WHEN 'no prompt' THEN 'its prompt is not known, so it cannot be paired by it'
        WHEN 'several counterparts' THEN 'what it is paired by stands several times in a trace'
        WHEN 'fewer equal prompts' THEN format('{} has only {} request(s) with this prompt', other, equal_prompts.num)
        ELSE CASE method
            WHEN 'request_id' THEN format('no request of {} has this id', other)
            WHEN 'external_id' THEN format('no request of {} has its external id ''{}'' and sample index', other, l.external_id)
            ELSE format('no request of {} has its prompt', other)
        END
    END AS detail,
    reason NOT IN ('no tokens', 'not selected', 'not scored') AND NOT partial AS refused
FROM (
    SELECT l.*, p.method, p.partial, CASE l.side WHEN 'a' THEN 'B' ELSE 'A' END AS other,
        CASE l.side WHEN 'a' THEN b_part ELSE a_part END AS part,
        CASE l.side WHEN 'a' THEN b.role ELSE a.role END AS other_role
    FROM _lonely AS l CROSS JOIN _alignment AS p CROSS JOIN a._manifest AS a CROSS JOIN b._manifest AS b
) AS l
LEFT JOIN _identities AS i ON l.side = i.side AND l.run_id = i.run_id AND l.request_id = i.request_id
LEFT JOIN (
    SELECT side, identity, ordinal, max(num) AS num FROM _identities GROUP BY side, identity, ordinal
) AS others ON l.side <> others.side AND i.identity = others.identity AND i.ordinal = others.ordinal
LEFT JOIN (
    SELECT side, text_digest, min(request_id) AS request_id, list(DISTINCT prompt_hash) AS hashes
    FROM _lonely WHERE text_digest IS NOT NULL GROUP BY side, text_digest
) AS twin ON l.side <> twin.side AND l.text_digest = twin.text_digest
LEFT JOIN (
    SELECT side, prompt_hash, count(*) AS num FROM _keys WHERE prompt_hash IS NOT NULL GROUP BY side, prompt_hash
) AS equal_prompts ON method = 'prompt' AND l.side <> equal_prompts.side AND l.prompt_hash = equal_prompts.prompt_hash;
