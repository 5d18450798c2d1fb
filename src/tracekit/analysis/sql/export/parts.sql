-- The parts of one table, by writer and number. A trace from before the table existed has none: it reads a part without rows.
SET VARIABLE _${side}_$table = (
    SELECT coalesce(
        list(file ORDER BY regexp_extract(file, $pattern, 1), regexp_extract(file, $pattern, 2)::BIGINT),
        [getvariable('$side') || '/runs/empty-000000.parquet']
    )
    FROM glob(getvariable('$side') || '/$table/*.parquet')
    WHERE regexp_matches(file, $pattern)
);
