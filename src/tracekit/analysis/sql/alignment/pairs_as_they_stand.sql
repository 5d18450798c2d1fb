-- Rows side by side where `_as_they_stand` holds: nothing is looked up for them, and hashes stand for request ids, which
-- saves the join its texts.
CREATE VIEW _joined AS
SELECT
    a.request_id, a.output_index, a.position, a.token_id,
    COLUMNS(a.* EXCLUDE (request_hash)) AS 'a_\0',
    COLUMNS(b.* EXCLUDE (request_hash)) AS 'b_\0'
FROM (SELECT *, hash(request_id) AS request_hash FROM a.tokens_all WHERE NOT is_prompt) AS a
JOIN (SELECT *, hash(request_id) AS request_hash FROM b.tokens_all WHERE NOT is_prompt) AS b
    ON a.request_hash = b.request_hash AND a.output_index = b.output_index;
