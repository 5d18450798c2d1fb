-- What a session looks into once: of each file its columns, as one number, and how many rows it has.
CREATE MACRO _looked_into(files) AS TABLE
SELECT s.file_name, s.columns, m.num_rows
FROM (
    SELECT file_name, hash(list({'name': name, 'type': duckdb_type, 'children': num_children} ORDER BY column_id)) AS columns
    FROM parquet_schema(files)
    GROUP BY file_name
) AS s
JOIN parquet_file_metadata(files) AS m ON s.file_name = m.file_name;
