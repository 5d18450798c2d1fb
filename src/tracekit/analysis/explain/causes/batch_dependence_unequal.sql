SELECT place, request_id, output_index, a_step_id, b_step_id, a_num_requests, b_num_requests, d
FROM explained
WHERE d IS NOT NULL AND a_num_requests <> b_num_requests
