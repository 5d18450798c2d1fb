SELECT place, request_id, output_index, position, a_raw, b_raw, d
FROM explained
WHERE d IS NOT NULL AND a_raw >= $sure AND d < -$far
