-- Does |d| differ between requests with and without cached tokens?
SELECT
    r.num_cached_tokens > 0 AS prefix_cache_hit,
    count(DISTINCT r.request_id) AS requests,
    count(*) AS tokens,
    round(avg(abs(p.d)), 5) AS mean_abs_d,
    round(median(abs(p.d)), 5) AS median_abs_d,
    round(max(abs(p.d)), 4) AS max_abs_d
FROM pairs p
JOIN a.requests r USING (request_id)
GROUP BY ALL
ORDER BY prefix_cache_hit;
