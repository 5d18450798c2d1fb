-- The rows of each trace that stand in pairs. `place` is match and output index in one number, for joins take half the time
-- with one key.
CREATE VIEW _a_side AS
SELECT m.match_id::BIGINT * 4294967296 + t.output_index AS place, t.*
FROM a.tokens_all AS t
JOIN _aligned AS m ON t.run_id = m.a_run_id AND t.request_id = m.a_request_id
WHERE NOT t.is_prompt AND t.output_index < m.num_compared;

CREATE VIEW _b_side AS
SELECT m.match_id::BIGINT * 4294967296 + t.output_index AS place, t.*
FROM b.tokens_all AS t
JOIN _aligned AS m ON t.run_id = m.b_run_id AND t.request_id = m.b_request_id
WHERE NOT t.is_prompt AND t.output_index < m.num_compared;
