SELECT value
FROM modelled_floor
WHERE name = 'k2_kl' AND basis IN ($1, 'raw')
ORDER BY basis = 'raw'
LIMIT 1
