SELECT place, request_id, output_index, position, a_value, b_value, b_shifted, b_value - b_shifted AS delta, d
FROM (
    SELECT
        *,
        lead(b_value, $shift) OVER (PARTITION BY match_id ORDER BY output_index)::DOUBLE AS b_shifted
    FROM explained
)
WHERE d IS NOT NULL AND b_shifted IS NOT NULL
