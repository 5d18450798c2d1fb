SELECT place, request_id, output_index, position, $rounded AS rounded, $full AS in_full, $sign * ($rounded - $full) AS delta, d
FROM explained
WHERE d IS NOT NULL AND $rounded <> $full
