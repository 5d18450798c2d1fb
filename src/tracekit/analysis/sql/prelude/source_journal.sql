-- The same for a table without parts, as in a trace from before the table existed.
CREATE VIEW _$table AS
SELECT $columns, rowid AS _order FROM _journal_$table;
