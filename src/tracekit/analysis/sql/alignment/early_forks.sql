-- Requests that differ at once. Later forks are what sampling and rounding make; and so few tokens of each are read.
CREATE VIEW _early_forks AS
SELECT match_id, a_run_id, a_request_id, b_run_id, b_request_id, least(num_delivered, fork_index + 64) AS num_read
FROM _proof
WHERE fork_index < 16;

-- Requests whose output differs at the first token, and is that of another prompt's request on the other side.
CREATE VIEW _displaced AS
SELECT match_id, elsewhere_id
FROM (
    SELECT p.match_id, min(e.request_id) AS elsewhere_id, avg((count(e.request_id) > 0)::INTEGER) OVER () AS share
    FROM _proof AS p
    JOIN a._keys AS a ON p.a_run_id = a.run_id AND p.a_request_id = a.request_id
    LEFT JOIN b._keys AS e ON a.num_tokens = e.num_tokens AND a.token_digest = e.token_digest AND a.prompt_hash <> e.prompt_hash
    WHERE p.fork_index = 0 AND p.a_num_tokens >= 4
    GROUP BY p.match_id
)
WHERE elsewhere_id IS NOT NULL AND share >= 0.5;
