-- The first pair whose prompts differ, and how, in words.
CREATE MACRO _named(a_request_id, b_request_id) AS CASE WHEN a_request_id = b_request_id
    THEN format('request ''{}''', a_request_id)
    ELSE format('request ''{}'' of A with ''{}'' of B', a_request_id, b_request_id) END;

CREATE VIEW _first_unequal AS
SELECT a_run_id, a_request_id, b_run_id, b_request_id, count(*) OVER () AS num
FROM _proof
WHERE NOT equal_prompts
ORDER BY a_request_id, b_request_id
LIMIT 1;

-- Only of one pair, and of none where all are equal: a join with an empty side reads nothing.
CREATE VIEW _unequal_prompts AS
SELECT 'a' AS side, arg_min(COLUMNS(['prompt_token_ids', 'prompt_text', 'prompt_hash']), _order)
FROM a._requests JOIN _first_unequal ON run_id = a_run_id AND request_id = a_request_id
UNION ALL
SELECT 'b' AS side, arg_min(COLUMNS(['prompt_token_ids', 'prompt_text', 'prompt_hash']), _order)
FROM b._requests JOIN _first_unequal ON run_id = b_run_id AND request_id = b_request_id;

CREATE VIEW _first_unequal_prompt AS
SELECT m.*, a.prompt_token_ids AS a_prompt, b.prompt_token_ids AS b_prompt, b.prompt_hash AS b_hash,
    a.prompt_text = b.prompt_text AS same_text,
    list_position(list_transform(
        list_zip(a.prompt_token_ids, b.prompt_token_ids), lambda pair: pair[1] IS NOT DISTINCT FROM pair[2]
    ), false) AS entry
FROM _first_unequal AS m
JOIN _unequal_prompts AS a ON a.side = 'a'
JOIN _unequal_prompts AS b ON b.side = 'b';

-- Texts of token ids are there only where a session has a tokenizer.
CREATE MACRO _decoded(token_ids) AS array_to_string(list_select((FROM _token_texts), list_transform(token_ids, lambda token_id: token_id + 1)), '');

-- Positions count from 0, list entries from 1.
CREATE VIEW _find_prompt_difference AS
SELECT
    num,
    _named(a_request_id, b_request_id) || ': ' || CASE
        WHEN same_text THEN 'retokenised: same text, ids differ at '
        WHEN _decoded(a_prompt) = _decoded(b_prompt) THEN 'retokenised: same text when decoded, ids differ at '
        WHEN entry IS NULL THEN ''
        ELSE 'the prompts differ at '
    END || CASE
        WHEN entry IS NULL THEN 'the prompt hashes differ'
        WHEN a_prompt[entry] IS NOT NULL AND b_prompt[entry] IS NOT NULL THEN format(
            'position {}, token {} in A, {} in B ({} prompt tokens in A, {} in B)',
            entry - 1, a_prompt[entry], b_prompt[entry], len(a_prompt), len(b_prompt)
        )
        ELSE format(
            'position {} where the shorter one ends ({} prompt tokens in A, {} in B)', entry - 1, len(a_prompt), len(b_prompt)
        )
    END || coalesce(format('; the prompt of B is that of request ''{}'' of A', (
        SELECT min(request_id) FROM _keys WHERE side = 'a' AND request_id <> a_request_id
            AND CASE WHEN ids_digest IS NULL OR b_prompt IS NULL THEN prompt_hash = b_hash ELSE ids_digest = hash(b_prompt) END
    )), '') AS difference
FROM _first_unequal_prompt;
