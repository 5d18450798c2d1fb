SELECT place, request_id, output_index, position, a_step_id, b_step_id, a_weight_version, b_weight_version, d
FROM explained
WHERE d IS NOT NULL AND coalesce(a_weight_version, 0) - coalesce(b_weight_version, 0) <> $lag
