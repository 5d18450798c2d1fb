SELECT place, request_id, output_index, position, a_step_id, a_weight_version, b_weight_version, d
FROM explained
WHERE d IS NOT NULL AND a_weight_version - coalesce(b_weight_version, 0) <> $lag
