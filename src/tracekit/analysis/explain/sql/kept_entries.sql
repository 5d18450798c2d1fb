-- Of requests whose weights changed while they ran, tokens since, and those of them that attended to older entries.
SELECT count(*) AS num, count_if(oldest < version) AS num_stale
FROM (
    SELECT
        ${side}_weight_version AS version, ${side}_kv_weight_version_min AS oldest,
        min(${side}_weight_version) OVER (PARTITION BY match_id) AS first
    FROM explained
)
WHERE version > first AND oldest IS NOT NULL
