-- tracekit $version: its SQL library over $what, for any DuckDB from 1.4 on. No tracekit is needed to run it.
--
$usage
--
-- It reads Parquet parts only. Where a recording was killed, `tracekit recover TRACE` makes parts of its journals first.
-- What the views mean stands in their comments: FROM duckdb_views(), FROM duckdb_columns(), FROM duckdb_functions().
