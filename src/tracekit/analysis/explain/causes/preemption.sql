SELECT place, request_id, output_index, position, a_num_preemptions, b_num_preemptions, d
FROM explained
WHERE d IS NOT NULL AND a_num_preemptions <> b_num_preemptions
