SELECT place, request_id, output_index, position, a_step_id, ${side}_num_requests AS num_requests, d
FROM explained
WHERE d IS NOT NULL AND ${side}_num_requests $comparison $num_requests
