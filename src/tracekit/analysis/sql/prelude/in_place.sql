-- The tokens of one bucket of two compacted traces, row by row. Expanded for each bucket.
SELECT $columns
FROM read_parquet($a, hive_partitioning = false) AS a
POSITIONAL JOIN read_parquet($b, hive_partitioning = false) AS b
