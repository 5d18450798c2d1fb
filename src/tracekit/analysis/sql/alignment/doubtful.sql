-- Forced tokens cannot differ: there a change of the first candidate stands for it, unless a tie explains it. Candidate
-- lists tell that, and are read only of requests with such a flip before their first clear one.
CREATE VIEW _find_doubtful AS
SELECT p.run_id, p.request_id
FROM _parts AS p
JOIN _aligned AS m ON p.run_id = m.a_run_id AND p.request_id = m.a_request_id
WHERE tied_flip_index < least(coalesce(clear_flip_index, 2147483647), coalesce(fork_index, 2147483647));
