SELECT place, request_id, output_index, position, a_raw, b_raw, d
FROM explained
WHERE d IS NOT NULL AND a_raw >= ln(0.5) AND d < -1
