-- Outputs that are displaced: B's row stands one place before or after A's, or belongs to another prompt.

CREATE VIEW _a_early AS
SELECT f.match_id, f.match_id::BIGINT * 4294967296 + t.output_index AS place, t.token_id
FROM a._tokens AS t
JOIN _early_forks AS f ON t.run_id = f.a_run_id AND t.request_id = f.a_request_id
WHERE NOT t.is_prompt AND t.output_index < f.num_read;

CREATE VIEW _b_early AS
SELECT f.match_id::BIGINT * 4294967296 + t.output_index AS place, t.token_id
FROM b._tokens AS t
JOIN _early_forks AS f ON t.run_id = f.b_run_id AND t.request_id = f.b_request_id
WHERE NOT t.is_prompt AND t.output_index < f.num_read;

-- Whether B's token at i is A's at i + shift, at nearly every place; a run of one token says nothing.
CREATE VIEW _shifts AS
SELECT match_id, shift, num_equal >= 2 AND num_equal >= 0.9 * num AND num_distinct >= 2 AS shifted
FROM (
    SELECT a.match_id, s.shift, count(*) AS num, count_if(a.token_id = b.token_id) AS num_equal,
        count(DISTINCT a.token_id) FILTER (a.token_id = b.token_id) AS num_distinct
    FROM _a_early AS a
    CROSS JOIN (VALUES (1), (-1)) AS s (shift)
    JOIN _b_early AS b ON a.place - s.shift = b.place
    GROUP BY a.match_id, s.shift
);

-- One request may be so by chance, a trace is not: half of those that differ at once must be.
CREATE VIEW _find_shifted AS
SELECT match_id, shift
FROM (
    SELECT match_id, arg_max(shift, shifted) AS shift, bool_or(shifted) AS shifted,
        avg(bool_or(shifted)::INTEGER) OVER () AS share
    FROM _shifts
    GROUP BY match_id
)
WHERE shifted AND share >= 0.5;
