-- What keeps trace $side from being read.
SET VARIABLE _fault = (
    SELECT arg_min(message, place)
    FROM (
        SELECT 1 AS place, 'the variable $side is not set: SET VARIABLE $side = ''.../run.trace'' and run this again' AS message
        WHERE getvariable('$side') IS NULL
        UNION ALL
        SELECT 2, getvariable('$side') || ' is no trace: it holds no manifest.json; set the variable $side to the folder of one'
        WHERE NOT EXISTS (FROM glob(coalesce(getvariable('$side'), '') || '/manifest.json'))
        UNION ALL
        SELECT 3, format(
            '{} has rows in {} journal(s), first {}, which this does not read; run `tracekit recover {}` first',
            getvariable('$side'), count(*), min(journal), getvariable('$side')
        )
        FROM (
            SELECT file AS journal, regexp_extract(replace(file, '\', '/'), '([^/]+/[^/]+)[.]arrows[.]zst$$', 1) AS segment
            FROM glob(coalesce(getvariable('$side'), '') || '/journal/*/*.arrows.zst')
        ) AS journals
        ANTI JOIN (
            SELECT regexp_extract(replace(file, '\', '/'), '([^/]+/[^/]+)[.]parquet$$', 1) AS segment
            FROM glob(coalesce(getvariable('$side'), '') || '/*/*.parquet')
        ) AS parts USING (segment)
        HAVING count(*) > 0
    )
);
SET VARIABLE _raised = (SELECT error(getvariable('_fault')) WHERE getvariable('_fault') IS NOT NULL);
SET VARIABLE _manifest = (SELECT content FROM read_text(getvariable('$side') || '/manifest.json'));
SET VARIABLE _fault = (
    SELECT format(
        '{} has trace format {}, this library reads $major.x; export it with another tracekit', getvariable('$side'),
        coalesce(getvariable('_manifest') ->> 'format_version', 'unknown')
    )
    WHERE NOT coalesce(regexp_matches(getvariable('_manifest') ->> 'format_version', '^$major[.][0-9]+$$'), false)
);
SET VARIABLE _raised = (SELECT error(getvariable('_fault')) WHERE getvariable('_fault') IS NOT NULL);
