SELECT e.place, avg(r.d * r.d) AS value
FROM explained AS e
JOIN _repeated AS r ON e.a_run_id = r.a_run_id AND e.request_id = r.request_id AND e.output_index = r.output_index
WHERE e.d IS NOT NULL
GROUP BY e.place
