SELECT e.place, e.request_id, e.output_index, e.position, a.num_chunks AS a_num_chunks, b.num_chunks AS b_num_chunks, e.d
FROM explained AS e
JOIN (
    SELECT run_id, request_id, count(*) AS num_chunks
    FROM (SELECT run_id, unnest(request_ids) AS request_id, unnest(scheduled_tokens) AS scheduled,
        unnest(computed_tokens) AS computed FROM a.steps)
    JOIN (SELECT run_id, request_id, num_prompt_tokens FROM a.requests) USING (run_id, request_id)
    WHERE computed < num_prompt_tokens
    GROUP BY run_id, request_id
) AS a ON e.a_run_id = a.run_id AND e.request_id = a.request_id
LEFT JOIN (
    SELECT run_id, request_id, count(*) AS num_chunks
    FROM (SELECT run_id, unnest(request_ids) AS request_id, unnest(scheduled_tokens) AS scheduled,
        unnest(computed_tokens) AS computed FROM b.steps)
    JOIN (SELECT run_id, request_id, num_prompt_tokens FROM b.requests) USING (run_id, request_id)
    WHERE computed < num_prompt_tokens
    GROUP BY run_id, request_id
) AS b ON e.b_run_id = b.run_id AND e.b_request_id = b.request_id
WHERE e.d IS NOT NULL AND a.num_chunks <> coalesce(b.num_chunks, 1)
