SELECT ${side}_weight_version AS version, min(${side}_step_id) AS step
FROM explained
WHERE ${side}_weight_version IS NOT NULL
GROUP BY ALL
ORDER BY version
