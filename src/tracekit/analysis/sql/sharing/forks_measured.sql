-- Forks of one share, by their requests' own names: numbers of matches are a share's own.
SELECT m.a_run_id, m.a_request_id, f.* EXCLUDE (match_id)
FROM _forks AS f
JOIN _matches AS m ON f.match_id = m.match_id
