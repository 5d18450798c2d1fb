SELECT place, request_id, output_index, position, a_weight_version, b_trainer_step, b_weight_version, d
FROM explained
WHERE d IS NOT NULL AND $covariate IS NOT NULL
