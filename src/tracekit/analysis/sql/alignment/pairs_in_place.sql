-- Rows side by side where `_as_they_stand` and `_same_places` hold: no key is looked up, and memory holds none of them.
CREATE VIEW _joined AS
SELECT
    a_request_id AS request_id, a_output_index AS output_index, a_position AS position, a_token_id AS token_id,
    *
FROM _in_place
WHERE NOT a_is_prompt;
