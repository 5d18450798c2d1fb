-- Position by position, routes are of what went into the model; the logits of a token come out of the one before.
SELECT e.place, e.request_id, e.output_index, e.position, e.d
FROM explained AS e
JOIN a.routes AS r ON e.a_run_id = r.run_id AND e.request_id = r.request_id AND e.position = r.position + 1
JOIN b.routes AS s ON e.b_run_id = s.run_id AND e.b_request_id = s.request_id AND e.position = s.position + 1
WHERE e.d IS NOT NULL AND r.experts IS DISTINCT FROM s.experts
