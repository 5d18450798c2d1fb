SELECT place, request_id, output_index, position, d
FROM explained
WHERE d IS NOT NULL
