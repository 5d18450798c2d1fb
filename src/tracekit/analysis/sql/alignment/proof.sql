-- num_both: positions that both sides hold. num_compared: where the request's rows in pairs end, the fork included.
CREATE VIEW _find_proof AS
SELECT
    m.*, fork_index, unequal_position_index, a_position, b_position,
    CASE WHEN m.alike THEN m.a_num_tokens ELSE coalesce(t.num_both, 0) END AS num_both,
    least(m.num_delivered, coalesce(fork_index + 1, m.num_delivered)) AS num_compared
FROM _matches AS m
LEFT JOIN _forks AS t ON m.match_id = t.match_id;
