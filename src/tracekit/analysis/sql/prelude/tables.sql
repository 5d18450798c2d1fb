-- The tables of one trace. Column comments come from the trace format's definitions.
CREATE VIEW runs AS SELECT * EXCLUDE (_order) FROM _runs;
COMMENT ON VIEW runs IS 'Writers of the trace, with the configuration each saw. One row a process of a run.';

-- Several processes may know a part of one request: each column is its first non-null, in the order of writing.
CREATE VIEW requests AS
SELECT run_id, request_id, arg_min(COLUMNS(* EXCLUDE (run_id, request_id, _order)), _order)
FROM _requests
GROUP BY run_id, request_id;
COMMENT ON VIEW requests IS 'Requests with prompt and sampling parameters. One row a request, merged over processes: each column is its first non-null.';

CREATE VIEW outcomes AS
SELECT run_id, request_id, arg_min(COLUMNS(* EXCLUDE (run_id, request_id, _order)), _order)
FROM _outcomes
GROUP BY run_id, request_id;
COMMENT ON VIEW outcomes IS 'How requests ended. One row a request that ended, merged over processes: each column is its first non-null.';

CREATE VIEW steps AS SELECT * EXCLUDE (_order) FROM _steps;
COMMENT ON VIEW steps IS 'Engine steps with a forward pass, and the batch of each. One row a step.';

CREATE VIEW tokens_all AS SELECT * EXCLUDE (_order) FROM _tokens;
COMMENT ON VIEW tokens_all IS 'Every token row: delivered ones, sampled ones that were discarded, and scored prompt positions.';

CREATE VIEW tokens AS
SELECT t.*
FROM tokens_all AS t
LEFT JOIN (SELECT run_id, request_id, num_output_tokens FROM outcomes) AS o
    ON t.run_id = o.run_id AND t.request_id = o.request_id
WHERE NOT t.is_prompt AND (o.num_output_tokens IS NULL OR t.output_index < o.num_output_tokens);
COMMENT ON VIEW tokens IS 'Delivered tokens: output_index < num_output_tokens of the outcome (all where no outcome is known). Prompt positions and discarded samples stand in tokens_all only.';

CREATE VIEW logits AS SELECT * EXCLUDE (_order) FROM _logits;
COMMENT ON VIEW logits IS 'Whole raw logits rows (opt-in). One row a position.';

CREATE VIEW hidden AS SELECT * EXCLUDE (_order) FROM _hidden;
COMMENT ON VIEW hidden IS 'Final hidden states as the head saw them (opt-in). One row a position.';

CREATE VIEW routes AS SELECT * EXCLUDE (_order) FROM _routes;
COMMENT ON VIEW routes IS 'Mixture-of-experts routes, where the engine was made to return them. One row a position.';

CREATE VIEW events AS SELECT * EXCLUDE (_order) FROM _events;
COMMENT ON VIEW events IS 'Weight updates, cache resets, preemptions, dropped rows and the like. One row an event.';

-- Every request that left a row of any kind; the session keeps it as the table _keys when it compares two traces.
CREATE VIEW _find_keys AS
SELECT coalesce(r.run_id, t.run_id) AS run_id, coalesce(r.request_id, t.request_id) AS request_id,
    coalesce(num_tokens, 0) AS num_tokens, coalesce(num_indexes, 0) AS num_indexes
FROM (SELECT run_id, request_id FROM requests) AS r
FULL JOIN (
    SELECT run_id, request_id, count(output_index) AS num_tokens, count(DISTINCT output_index) AS num_indexes
    FROM _tokens WHERE NOT is_prompt
    GROUP BY run_id, request_id
) AS t ON r.run_id = t.run_id AND r.request_id = t.request_id;
