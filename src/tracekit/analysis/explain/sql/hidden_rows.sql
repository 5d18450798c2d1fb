-- Whether B is a replay of A, and whether both have hidden states.
SELECT
    coalesce((SELECT parent FROM b._manifest) = (SELECT trace_id FROM a._manifest), false) AS is_replay,
    EXISTS (SELECT 1 FROM a.hidden) AND EXISTS (SELECT 1 FROM b.hidden) AS are_there
