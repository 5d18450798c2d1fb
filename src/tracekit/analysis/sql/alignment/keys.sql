-- What the output tokens of a request add up to. Sides with equal sums need no comparison token by token. A digest is
-- made of 64-bit hashes; one that is a sum does not depend on an order.
CREATE VIEW _find_outputs AS
SELECT
    run_id, request_id, count(output_index) AS num_rows, max(output_index) AS last_index,
    sum(hash(output_index)) AS index_digest, count(output_index) AS num_tokens, min(output_index) AS first_index,
    sum(hash(output_index, token_id)) AS token_digest,
    min("position" - output_index) AS least_offset, max("position" - output_index) AS largest_offset
FROM _tokens
WHERE NOT is_prompt
GROUP BY run_id, request_id;

-- The same of what was delivered, for requests that sampled more than that: only these are read once more.
CREATE VIEW _find_delivered AS
SELECT
    t.run_id, t.request_id, any_value(t.num_rows) AS num_rows, any_value(t.last_index) AS last_index,
    any_value(t.index_digest) AS index_digest, count(*) FILTER (delivered) AS num_tokens,
    min(t.output_index) FILTER (delivered) AS first_index,
    sum(hash(t.output_index, t.token_id)) FILTER (delivered) AS token_digest,
    min(t."position" - t.output_index) FILTER (delivered) AS least_offset,
    max(t."position" - t.output_index) FILTER (delivered) AS largest_offset
FROM (
    SELECT t.*, o.num_rows, o.last_index, o.index_digest, t.output_index < o.num_output_tokens AS delivered
    FROM _tokens AS t
    JOIN (
        SELECT * FROM _outputs JOIN (SELECT run_id, request_id, num_output_tokens FROM outcomes) USING (run_id, request_id)
        WHERE last_index >= num_output_tokens
    ) AS o ON t.run_id = o.run_id AND t.request_id = o.request_id
    WHERE NOT t.is_prompt
) AS t
GROUP BY t.run_id, t.request_id;

-- Every request that left a row of any kind, in one trace of two: what it may be paired by, and its outputs' sums.
-- Of a trainer's passes over one request the chosen one is here.
CREATE VIEW _find_keys AS
SELECT
    coalesce(r.run_id, t.run_id) AS run_id, coalesce(r.request_id, t.request_id) AS request_id,
    r.* EXCLUDE (run_id, request_id), o.num_output_tokens,
    coalesce(t.num_rows, 0) AS num_rows, coalesce(t.num_tokens, 0) AS num_tokens,
    t.* EXCLUDE (run_id, request_id, num_rows, num_tokens)
FROM (
    SELECT
        run_id, request_id,
        arg_min(COLUMNS(['external_id', 'sample_index', 'arrival_ns', 'temperature', 'prompt_hash']), _order),
        arg_min(hash(prompt_token_ids), _order) FILTER (prompt_token_ids IS NOT NULL) AS ids_digest,
        arg_min(hash(prompt_text), _order) FILTER (prompt_text IS NOT NULL) AS text_digest
    FROM _requests
    GROUP BY run_id, request_id
) AS r
FULL JOIN (
    FROM _delivered
    UNION ALL
    FROM _outputs ANTI JOIN _delivered USING (run_id, request_id)
) AS t ON r.run_id = t.run_id AND r.request_id = t.request_id
LEFT JOIN (SELECT run_id, request_id, num_output_tokens FROM outcomes) AS o
    ON o.run_id = coalesce(r.run_id, t.run_id) AND o.request_id = coalesce(r.request_id, t.request_id)
LEFT JOIN _passes AS p ON p.run_id = coalesce(r.run_id, t.run_id)
WHERE coalesce(p.chosen, true)
QUALIFY p.place IS NULL OR row_number() OVER (
    PARTITION BY p.source_run_id, coalesce(r.request_id, t.request_id) ORDER BY p.place
) = 1;
