-- Rows side by side, whatever the requests are called.
CREATE VIEW _joined AS
SELECT
    a.request_id, a.output_index, a.position, a.token_id,
    COLUMNS(a.* EXCLUDE (place)) AS 'a_\0',
    COLUMNS(b.* EXCLUDE (place)) AS 'b_\0'
FROM _a_side AS a
JOIN _b_side AS b ON a.place = b.place;
