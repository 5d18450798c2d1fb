-- Forks of all shares, by the numbers of matches that they have together.
SELECT m.match_id, f.* EXCLUDE (a_run_id, a_request_id)
FROM _shared_forks AS f
JOIN _matches AS m ON f.a_run_id = m.a_run_id AND f.a_request_id = m.a_request_id
