SELECT place, request_id, output_index, position, a_draft_index, b_draft_index, d
FROM explained
WHERE d IS NOT NULL AND coalesce(a_draft_index, 0) <> coalesce(b_draft_index, 0)
