-- Empty where there is an objection: nothing is compared without proof.
CREATE VIEW _find_aligned AS
SELECT * FROM _proof WHERE NOT EXISTS (FROM _objections);

-- One row where both traces hold the same tokens under the same request ids, and one of them no others; else none. Their
-- ids can be told apart by their hashes too.
CREATE VIEW _as_they_stand AS
SELECT count(*) AS num_requests
FROM _aligned AS m
JOIN a._keys AS a ON m.a_run_id = a.run_id AND m.a_request_id = a.request_id
JOIN b._keys AS b ON m.b_run_id = b.run_id AND m.b_request_id = b.request_id
HAVING count(*) = count(DISTINCT m.a_request_id)
    AND (SELECT count(*) = count(DISTINCT request_id) FROM a._outputs)
    AND (SELECT count(*) = count(DISTINCT request_id) FROM b._outputs)
    AND (
        SELECT count(DISTINCT request_id) = count(DISTINCT hash(request_id))
        FROM (SELECT request_id FROM a._outputs UNION ALL SELECT request_id FROM b._outputs)
    )
    AND bool_and(
        m.alike AND m.a_request_id = m.b_request_id AND m.num_both = m.num_compared
        AND (a.num_rows = m.num_compared OR b.num_rows = m.num_compared)
    );
