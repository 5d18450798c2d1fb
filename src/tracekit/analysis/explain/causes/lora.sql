SELECT place, request_id, output_index, position, a_lora, b_lora, d
FROM explained
WHERE d IS NOT NULL AND (a_lora IS NOT NULL OR b_lora IS NOT NULL)
