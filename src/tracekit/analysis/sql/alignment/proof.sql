-- The tokens that both sides delivered, past a fork too.
CREATE VIEW _both_tokens AS
SELECT a.match_id, a.output_index, a.token_id AS a_token_id, b.token_id AS b_token_id, a.position AS a_position, b.position AS b_position
FROM (
    SELECT m.match_id, t.output_index, t.token_id, t.position
    FROM a.tokens_all AS t JOIN _matches AS m ON t.run_id = m.a_run_id AND t.request_id = m.a_request_id
    WHERE NOT t.is_prompt AND t.output_index < m.num_delivered
) AS a
JOIN (
    SELECT m.match_id, t.output_index, t.token_id, t.position
    FROM b.tokens_all AS t JOIN _matches AS m ON t.run_id = m.b_run_id AND t.request_id = m.b_request_id
    WHERE NOT t.is_prompt AND t.output_index < m.num_delivered
) AS b ON a.match_id = b.match_id AND a.output_index = b.output_index;

-- The session keeps it as the table _aligned. num_compared: where the request's rows in pairs end, the fork included.
CREATE VIEW _find_aligned AS
SELECT
    m.*, fork_index, unequal_position_index, coalesce(num_both, 0) AS num_both,
    least(m.num_delivered, coalesce(fork_index + 1, m.num_delivered)) AS num_compared,
    coalesce(a.temperature, b.temperature) AS temperature
FROM _matches AS m
LEFT JOIN (
    SELECT
        match_id, count(*) AS num_both,
        min(output_index) FILTER (a_token_id <> b_token_id) AS fork_index,
        min(output_index) FILTER (a_position <> b_position) AS unequal_position_index
    FROM _both_tokens
    GROUP BY match_id
) AS t ON m.match_id = t.match_id
LEFT JOIN a.requests AS a ON m.a_run_id = a.run_id AND m.a_request_id = a.request_id
LEFT JOIN b.requests AS b ON m.b_run_id = b.run_id AND m.b_request_id = b.request_id;
