-- The tables of one trace. Column comments come from the trace format's definitions.
CREATE VIEW runs AS SELECT * EXCLUDE (_order) FROM _runs;
-- Example: SELECT engine, engine_version, dtype, head_output_dtype, logprobs_mode FROM runs
COMMENT ON VIEW runs IS 'Writers of the trace, with the configuration each saw. One row a process of a run.';

-- Several processes may know a part of one request: each column is its first non-null, in the order of writing.
CREATE VIEW requests AS
SELECT run_id, request_id, arg_min(COLUMNS(* EXCLUDE (run_id, request_id, _order)), _order)
FROM _requests
GROUP BY run_id, request_id;
-- Example: SELECT request_id, num_prompt_tokens, num_cached_tokens FROM requests WHERE temperature > 0 ORDER BY arrival_ns
COMMENT ON VIEW requests IS 'Requests with prompt and sampling parameters. One row a request, merged over processes: each column is its first non-null.';

CREATE VIEW outcomes AS
SELECT run_id, request_id, arg_min(COLUMNS(* EXCLUDE (run_id, request_id, _order)), _order)
FROM _outcomes
GROUP BY run_id, request_id;
-- Example: SELECT finish_reason, count(*), avg(num_output_tokens) FROM outcomes GROUP BY finish_reason
COMMENT ON VIEW outcomes IS 'How requests ended. One row a request that ended, merged over processes: each column is its first non-null.';

CREATE VIEW steps AS SELECT * EXCLUDE (_order) FROM _steps;
-- Example: SELECT num_requests, count(*) FROM steps GROUP BY num_requests ORDER BY num_requests
COMMENT ON VIEW steps IS 'Engine steps with a forward pass, and the batch of each. One row a step.';

CREATE VIEW tokens_all AS SELECT * EXCLUDE (_order) FROM _tokens;
-- Example: SELECT request_id, count(*) FROM tokens_all ANTI JOIN tokens USING (run_id, request_id, output_index) WHERE NOT is_prompt GROUP BY request_id
COMMENT ON VIEW tokens_all IS 'Every token row: delivered ones, sampled ones that were discarded, and scored prompt positions.';

CREATE VIEW tokens AS
SELECT t.*
FROM tokens_all AS t
LEFT JOIN (SELECT run_id, request_id, num_output_tokens FROM outcomes) AS o
    ON t.run_id = o.run_id AND t.request_id = o.request_id
WHERE NOT t.is_prompt AND (o.num_output_tokens IS NULL OR t.output_index < o.num_output_tokens);
-- Example: SELECT output_index, avg(entropy), avg(logprob) FROM tokens GROUP BY output_index ORDER BY output_index
COMMENT ON VIEW tokens IS 'Delivered tokens: output_index < num_output_tokens of the outcome (all where no outcome is known). Prompt positions and discarded samples stand in tokens_all only.';

CREATE VIEW logits AS SELECT * EXCLUDE (_order) FROM _logits;
COMMENT ON VIEW logits IS 'Whole raw logits rows (opt-in). One row a position.';

CREATE VIEW hidden AS SELECT * EXCLUDE (_order) FROM _hidden;
COMMENT ON VIEW hidden IS 'Final hidden states as the head saw them (opt-in). One row a position.';

CREATE VIEW routes AS SELECT * EXCLUDE (_order) FROM _routes;
COMMENT ON VIEW routes IS 'Mixture-of-experts routes, where the engine was made to return them. One row a position.';

CREATE VIEW events AS SELECT * EXCLUDE (_order) FROM _events;
-- Example: SELECT kind, count(*) FROM events GROUP BY kind
COMMENT ON VIEW events IS 'Weight updates, cache resets, preemptions, dropped rows and the like. One row an event.';
