-- What came from a prefix cache, and how far from it a token stands.
CREATE VIEW request_caches AS
SELECT
    r.run_id, r.request_id, r.num_prompt_tokens, r.num_cached_tokens, r.num_external_cached_tokens,
    r.num_cached_tokens > 0 AS is_cached,
    CASE WHEN r.num_prompt_tokens > 0 THEN r.num_cached_tokens / r.num_prompt_tokens END AS cached_share,
    o.num_preemptions
FROM requests AS r
LEFT JOIN outcomes AS o ON r.run_id = o.run_id AND r.request_id = o.request_id;
COMMENT ON VIEW request_caches IS 'What of each prompt came from a cache, and how often the request lost its own. One row a request.';
COMMENT ON COLUMN request_caches.run_id IS 'As in requests.';
COMMENT ON COLUMN request_caches.request_id IS 'As in requests.';
COMMENT ON COLUMN request_caches.num_prompt_tokens IS 'Length of the prompt in tokens.';
COMMENT ON COLUMN request_caches.num_cached_tokens IS 'Prompt tokens whose KV came from a cache when the request was first scheduled.';
COMMENT ON COLUMN request_caches.num_external_cached_tokens IS 'Those of them that came from outside this engine.';
COMMENT ON COLUMN request_caches.is_cached IS 'Whether any did; null where the engine does not tell.';
COMMENT ON COLUMN request_caches.cached_share IS 'num_cached_tokens / num_prompt_tokens.';
COMMENT ON COLUMN request_caches.num_preemptions IS 'How often it was preempted and resumed; null where it has no outcome.';

CREATE VIEW token_caches AS
SELECT
    t.run_id, t.request_id, t.output_index, t.position, c.is_cached, c.num_cached_tokens,
    t.position - c.num_cached_tokens AS distance, c.num_preemptions > 0 AS is_preempted
FROM tokens AS t
LEFT JOIN request_caches AS c ON t.run_id = c.run_id AND t.request_id = c.request_id;
COMMENT ON VIEW token_caches IS 'Delivered tokens beside the cached region of their request. One row a token.';
COMMENT ON COLUMN token_caches.run_id IS 'As in tokens.';
COMMENT ON COLUMN token_caches.request_id IS 'As in tokens.';
COMMENT ON COLUMN token_caches.output_index IS 'Which output token, from 0.';
COMMENT ON COLUMN token_caches.position IS 'Place of the token in the whole sequence, from 0.';
COMMENT ON COLUMN token_caches.is_cached IS 'Whether any of the prompt came from a cache; null where the engine does not tell.';
COMMENT ON COLUMN token_caches.num_cached_tokens IS 'How many of its tokens did.';
COMMENT ON COLUMN token_caches.distance IS 'Tokens between the end of the cached region and this token: position - num_cached_tokens.';
COMMENT ON COLUMN token_caches.is_preempted IS 'Whether the request was preempted at some time; null where it has no outcome.';
