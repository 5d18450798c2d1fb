-- Rows of one output token that stand twice, of requests that may hold such.
CREATE VIEW _find_repeats AS
SELECT t.run_id, t.request_id, t.output_index
FROM _tokens AS t
JOIN _gappy AS k ON t.run_id = k.run_id AND t.request_id = k.request_id
WHERE NOT t.is_prompt AND t.output_index IS NOT NULL
GROUP BY t.run_id, t.request_id, t.output_index
HAVING count(*) > 1;
