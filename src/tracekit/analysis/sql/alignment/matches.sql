-- num_delivered: tokens that both clients got, as far as it is known. equal_prompts: by ids where both sides hold them,
-- else by hash. alike: both sides have the same tokens at the same positions, so none of them needs to be compared.
CREATE VIEW _find_matches AS
SELECT
    row_number() OVER (ORDER BY i.run_id, i.request_id)::INTEGER AS match_id,
    i.run_id AS a_run_id, i.request_id AS a_request_id, j.run_id AS b_run_id, j.request_id AS b_request_id,
    least(coalesce(a.num_output_tokens, 2147483647), coalesce(b.num_output_tokens, 2147483647)) AS num_delivered,
    a.num_tokens AS a_num_tokens, b.num_tokens AS b_num_tokens, coalesce(a.temperature, b.temperature) AS temperature,
    coalesce(a.ids_digest = b.ids_digest, a.prompt_hash = b.prompt_hash) AS equal_prompts,
    a.num_tokens = b.num_tokens AND a.token_digest IS NOT DISTINCT FROM b.token_digest
        AND a.least_offset IS NOT DISTINCT FROM a.largest_offset AND a.least_offset IS NOT DISTINCT FROM b.least_offset
        AND b.least_offset IS NOT DISTINCT FROM b.largest_offset AS alike
FROM _identities AS i
JOIN _identities AS j ON i.identity = j.identity AND i.ordinal = j.ordinal
JOIN a._keys AS a ON i.run_id = a.run_id AND i.request_id = a.request_id
JOIN b._keys AS b ON j.run_id = b.run_id AND j.request_id = b.request_id
WHERE i.side = 'a' AND j.side = 'b' AND i.num = 1 AND j.num = 1;
