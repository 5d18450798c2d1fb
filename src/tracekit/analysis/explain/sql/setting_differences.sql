SELECT setting, source, a_value, b_value, known, relevance, reason, num_requests
FROM setting_differences
ORDER BY place
