SELECT place, request_id, output_index, position, a_draft_index, b_draft_index, d
FROM explained
WHERE d IS NOT NULL AND $touched
