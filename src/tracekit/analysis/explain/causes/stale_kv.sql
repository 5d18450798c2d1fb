-- Of weights at which both sides agree best: other weights make differences of their own.
SELECT place, request_id, output_index, position, a_weight_version, a_kv_weight_version_min, b_weight_version, b_kv_weight_version_min, d
FROM explained
WHERE d IS NOT NULL AND coalesce(a_weight_version, 0) - coalesce(b_weight_version, 0) = $lag
    AND coalesce(a_weight_version - a_kv_weight_version_min, 0) <> coalesce(b_weight_version - b_kv_weight_version_min, 0)
