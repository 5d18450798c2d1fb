SELECT cause, count(*) AS num
FROM excluded_tokens
GROUP BY ALL
ORDER BY num DESC, cause
