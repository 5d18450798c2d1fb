-- The same numbers went into both heads: what comes out of them differently was made there.
SELECT e.place, e.request_id, e.output_index, e.position, e.a_logit, e.b_logit, e.d
FROM explained AS e
JOIN a.hidden AS h ON e.a_run_id = h.run_id AND e.request_id = h.request_id AND e.output_index = h.output_index
JOIN b.hidden AS k ON e.b_run_id = k.run_id AND e.b_request_id = k.request_id AND e.output_index = k.output_index
WHERE e.d IS NOT NULL AND e.a_logit <> e.b_logit AND h.hidden = k.hidden
