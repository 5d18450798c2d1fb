SELECT coalesce(cause, 'unknown') AS cause, count(*) AS num
FROM fork_causes
GROUP BY ALL
ORDER BY num DESC, cause
