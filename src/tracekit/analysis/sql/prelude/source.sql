-- The rows of one table of one trace: its parts, then the journal rows that stand in no part.
-- Expanded for each table; the part files are named one by one. `union`: some of them lack columns that others have.
-- `_order` is the order of writing.
CREATE VIEW _$table AS
SELECT $columns, _order
FROM (
    SELECT *, file_index::BIGINT * 4294967296 + file_row_number AS _order
    FROM read_parquet($files, union_by_name = $union, hive_partitioning = false)
    UNION ALL BY NAME
    SELECT *, 4611686018427387904 + rowid AS _order FROM _journal_$table
);
