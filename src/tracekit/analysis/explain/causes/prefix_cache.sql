-- Also where both sides hit alike: entries of one of them may be wrong.
SELECT place, request_id, output_index, position, a_num_cached_tokens, b_num_cached_tokens, d
FROM explained
WHERE d IS NOT NULL AND greatest(a_num_cached_tokens, b_num_cached_tokens) > 0
