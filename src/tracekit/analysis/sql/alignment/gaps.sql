-- Output indexes that stand twice in one trace. Requests whose indexes are 0, 1, 2, … hold none, which their digest
-- shows; the rows of the others are counted.
CREATE VIEW _gapless AS
SELECT index + 1 AS num_rows, sum(hash(index::INTEGER)) OVER (ORDER BY index) AS index_digest
FROM (SELECT unnest(range((SELECT max(num_rows) FROM _keys WHERE last_index + 1 = num_rows))) AS index);

CREATE VIEW _gappy AS
SELECT run_id, request_id FROM _keys AS k
ANTI JOIN _gapless AS g
    ON k.num_rows = g.num_rows AND k.last_index + 1 = g.num_rows AND k.index_digest = g.index_digest
WHERE num_rows > 1;
