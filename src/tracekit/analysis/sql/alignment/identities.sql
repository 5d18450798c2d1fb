-- Which request of A is which of B: the same identity, by the method that was chosen.
CREATE VIEW _find_identities AS
SELECT side, run_id, request_id, identity, ordinal, count(*) OVER (PARTITION BY side, identity, ordinal) AS num
FROM (
    SELECT side, run_id, request_id, request_id AS identity, 0 AS ordinal
    FROM _keys CROSS JOIN _alignment WHERE method = 'request_id'
    UNION ALL
    SELECT side, run_id, request_id, external_id, coalesce(sample_index, 0)
    FROM _keys CROSS JOIN _alignment WHERE method = 'external_id' AND external_id IS NOT NULL
    UNION ALL
    -- Samples of one prompt come one after the other: by arrival, then in the caller's order.
    SELECT side, run_id, request_id, prompt_hash, row_number() OVER (
        PARTITION BY side, prompt_hash ORDER BY arrival_ns, external_id, sample_index, run_id, request_id
    )
    FROM _keys CROSS JOIN _alignment WHERE method = 'prompt' AND prompt_hash IS NOT NULL
);
