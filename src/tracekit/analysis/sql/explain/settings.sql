-- What differs between the configurations of A and B. Runs are compared as their requests are paired, so that traces of
-- several runs differ only where a pair of runs does.
CREATE VIEW _settled_pairs AS
SELECT a_run_id, b_run_id, count(*) AS num_requests FROM _aligned GROUP BY a_run_id, b_run_id;

-- Rows of both tables, each a process's. Where there is no quantisation its column is null; an automatic dtype of the cache
-- is that of the body; an engine that samples decodes.
CREATE VIEW _settled_runs AS
SELECT
    * REPLACE (
        coalesce(quantization, CASE WHEN dtype IS NOT NULL THEN 'none' END) AS quantization,
        CASE kv_cache_dtype WHEN 'auto' THEN dtype ELSE kv_cache_dtype END AS kv_cache_dtype,
        CASE WHEN role = 'record' THEN 'decode' ELSE mode END AS mode
    ),
    coalesce(process <> 'front_end', true) AS computes
FROM (SELECT 'a' AS side, * FROM a.runs UNION ALL SELECT 'b' AS side, * FROM b.runs)
WHERE (side, run_id) IN (SELECT ('a', a_run_id) FROM _settled_pairs UNION ALL SELECT ('b', b_run_id) FROM _settled_pairs);

CREATE VIEW _settled_columns AS
UNPIVOT (
    SELECT side, run_id, computes, COLUMNS(* EXCLUDE (
        side, run_id, computes, writer, role, process, process_id, hostname, started_ns, disabled_reason, dp_rank, tp_rank,
        pp_rank, ep_rank, engine_config, capture_config, options
    ))::VARCHAR
    FROM _settled_runs
)
ON COLUMNS(* EXCLUDE (side, run_id, computes))
INTO NAME setting VALUE told;

-- Of documents every key that holds no further ones. Text models nest their configuration twice.
CREATE VIEW _settled_keys AS
SELECT
    side, run_id, computes, source,
    replace(prefix || replace(fullkey[3:], '"', ''), 'model_config.hf_text_config', 'model_config.hf_config') AS setting,
    coalesce(regexp_replace(value ->> '$', ' at 0x[0-9a-f]+', '', 'g'), 'none') AS told
FROM (
    SELECT side, run_id, computes, unnest([
        {'source': 'engine_config', 'prefix': '', 'document': engine_config},
        {'source': 'options', 'prefix': 'options.', 'document': options},
        {'source': 'capture_config', 'prefix': 'capture_config.', 'document': capture_config}
    ], recursive := true)
    FROM _settled_runs
) AS d,
LATERAL json_tree(CASE WHEN json_valid(d.document) THEN d.document END) AS t
WHERE t.type <> 'OBJECT' AND NOT contains(t.fullkey, '[');

-- What a run says: its processes that compute, where they say anything.
CREATE VIEW _settled AS
SELECT
    side, run_id, source, setting,
    coalesce(list_sort(list(DISTINCT told) FILTER (computes)), list_sort(list(DISTINCT told))) AS told
FROM (
    SELECT side, run_id, computes, 'runs' AS source, setting, told FROM _settled_columns
    UNION ALL
    SELECT side, run_id, computes, source, setting, told FROM _settled_keys
    WHERE NOT EXISTS (FROM _unsettled WHERE regexp_matches(setting, pattern))
)
GROUP BY side, run_id, source, setting;

-- A part of the configuration that the other side has set to nothing is told on one row, by the first few of its own keys.
CREATE VIEW _settled_parts AS
WITH sides AS MATERIALIZED (
    SELECT p.*, s.* FROM _settled_pairs AS p JOIN _settled AS s ON s.side = 'a' AND s.run_id = p.a_run_id
    UNION ALL
    SELECT p.*, s.* FROM _settled_pairs AS p JOIN _settled AS s ON s.side = 'b' AND s.run_id = p.b_run_id
),
parts AS MATERIALIZED (
    SELECT s.*, o.setting AS part, s.setting[len(o.setting) + 2:] AS key
    FROM sides AS s
    JOIN sides AS o ON s.a_run_id = o.a_run_id AND s.b_run_id = o.b_run_id AND s.source = o.source AND s.side <> o.side
        AND starts_with(s.setting, o.setting || '.')
    WHERE o.told = ['none']
)
SELECT a_run_id, b_run_id, num_requests, side, run_id, source, setting, told
FROM sides
ANTI JOIN parts USING (a_run_id, b_run_id, side, source, setting)
UNION ALL
SELECT
    a_run_id, b_run_id, any_value(num_requests), side, run_id, source, part AS setting,
    [array_to_string(
        list(key || '=' || told[1] ORDER BY key NOT IN ('method', 'model', 'backend'), NOT starts_with(key, 'num_'), key)
            FILTER (NOT contains(key, '.') AND told[1] NOT IN ('none', 'false'))[:4],
        ', '
    )]
FROM parts
GROUP BY a_run_id, b_run_id, side, run_id, source, part;

-- Where a side lacks a whole document, as another engine does, its keys are no differences; nor is a recording's lack of a
-- backend. Of a replay's options those that say what was computed are told all the same. In documents of one release a
-- key that is missing is not set.
CREATE VIEW _run_differences AS
SELECT source, setting, a_told, b_told, num_requests
FROM (
    SELECT
        source, setting, num_requests, a_has, b_has,
        CASE WHEN a_told IS NULL AND source <> 'runs' AND a_has AND is_unset THEN ['none'] ELSE a_told END AS a_told,
        CASE WHEN b_told IS NULL AND source <> 'runs' AND b_has AND is_unset THEN ['none'] ELSE b_told END AS b_told
    FROM (
        SELECT
            *, bool_or(a_told IS NOT NULL) OVER (PARTITION BY a_run_id, b_run_id, source) AS a_has,
            bool_or(b_told IS NOT NULL) OVER (PARTITION BY a_run_id, b_run_id, source) AS b_has,
            starts_with(setting, 'model_config.hf_overrides.') OR coalesce(
                bool_and(coalesce(a_told = b_told, false)) FILTER (
                    source = 'runs' AND setting IN ('engine', 'engine_version', 'tracekit_version')
                ) OVER (PARTITION BY a_run_id, b_run_id), false
            ) AS is_unset
        FROM (
            SELECT
                a_run_id, b_run_id, any_value(num_requests) AS num_requests, source, setting,
                any_value(told) FILTER (side = 'a') AS a_told, any_value(told) FILTER (side = 'b') AS b_told
            FROM _settled_parts
            GROUP BY a_run_id, b_run_id, source, setting
        )
    )
)
WHERE a_told IS DISTINCT FROM b_told
    AND (
        CASE WHEN source = 'runs' THEN setting <> 'backend' OR (a_told IS NOT NULL AND b_told IS NOT NULL) ELSE a_has AND b_has END
        OR (
            source = 'options' AND coalesce(a_told, b_told) <> ['none']
            AND setting IN (SELECT setting FROM setting_ranks WHERE relevance IN ('precision', 'batching'))
        )
    );

-- Sampling parameters: null is none where the others are known, and all tokens are a truncation to none.
CREATE VIEW _settled_parameters AS
SELECT *, hash(*COLUMNS(* EXCLUDE (side, run_id, request_id))) AS digest
FROM (
    SELECT
        side, run_id, request_id, temperature, top_p, CASE WHEN top_k <= 0 THEN 'all' ELSE top_k::VARCHAR END AS top_k,
        min_p, presence_penalty, frequency_penalty, repetition_penalty, n, max_tokens, min_tokens, ignore_eos,
        lora_version, coalesce(stop, [])::VARCHAR AS stop, stop_token_ids,
        CASE WHEN temperature IS NOT NULL THEN coalesce(lora, 'none') END AS lora,
        CASE WHEN temperature IS NOT NULL THEN coalesce(seed::VARCHAR, 'none') END AS seed,
        CASE WHEN temperature IS NOT NULL THEN coalesce(logit_bias, 'none') END AS logit_bias,
        CASE WHEN temperature IS NOT NULL THEN coalesce(allowed_token_ids::VARCHAR, 'none') END AS allowed_token_ids,
        CASE WHEN temperature IS NOT NULL THEN coalesce(bad_words_token_ids, 'none') END AS bad_words_token_ids,
        CASE WHEN temperature IS NOT NULL THEN coalesce(structured_output, 'none') END AS structured_output,
        CASE WHEN temperature IS NOT NULL THEN coalesce(num_logprobs::VARCHAR, 'none') END AS num_logprobs,
        CASE WHEN temperature IS NOT NULL THEN coalesce(num_prompt_logprobs::VARCHAR, 'none') END AS num_prompt_logprobs
    FROM (SELECT 'a' AS side, * FROM a.requests UNION ALL SELECT 'b' AS side, * FROM b.requests)
);

-- Only requests whose sides differ are looked at column by column: they are few, and columns are many.
CREATE VIEW _settled_requests AS
WITH parameters AS MATERIALIZED (FROM _settled_parameters),
unlike AS MATERIALIZED (
    SELECT m.match_id, m.a_run_id, m.a_request_id, m.b_run_id, m.b_request_id
    FROM _aligned AS m
    JOIN parameters AS a ON a.side = 'a' AND a.run_id = m.a_run_id AND a.request_id = m.a_request_id
    JOIN parameters AS b ON b.side = 'b' AND b.run_id = m.b_run_id AND b.request_id = m.b_request_id
    WHERE a.digest <> b.digest
)
SELECT m.match_id, p.*
FROM unlike AS m
JOIN parameters AS p ON p.side = 'a' AND p.run_id = m.a_run_id AND p.request_id = m.a_request_id
UNION ALL
SELECT m.match_id, p.*
FROM unlike AS m
JOIN parameters AS p ON p.side = 'b' AND p.run_id = m.b_run_id AND p.request_id = m.b_request_id;

CREATE VIEW _request_differences AS
SELECT 'requests' AS source, setting, [a_told] AS a_told, [b_told] AS b_told, count(*) AS num_requests
FROM (
    SELECT match_id, setting, any_value(told) FILTER (side = 'a') AS a_told, any_value(told) FILTER (side = 'b') AS b_told
    FROM (
        UNPIVOT (
            SELECT match_id, side, COLUMNS(* EXCLUDE (match_id, side, run_id, request_id, digest))::VARCHAR
            FROM _settled_requests
        )
        ON COLUMNS(* EXCLUDE (match_id, side))
        INTO NAME setting VALUE told
    )
    GROUP BY match_id, setting
)
WHERE a_told IS DISTINCT FROM b_told
GROUP BY setting, a_told, b_told;

-- At most four values, for seeds differ from request to request.
CREATE MACRO _told_values(lists) AS (
    SELECT CASE WHEN len(told) > 0 THEN array_to_string(told[:4], ', ') || CASE WHEN len(told) > 4 THEN ', …' ELSE '' END END
    FROM (SELECT list_sort(list_distinct(flatten(list_filter(lists, lambda one: one IS NOT NULL AND one <> [NULL])))) AS told)
);

CREATE VIEW setting_differences AS
WITH differences AS (
    SELECT
        source, setting, _told_values(list(a_told)) AS a_value, _told_values(list(b_told)) AS b_value,
        sum(num_requests)::BIGINT AS num_requests
    FROM (FROM _run_differences UNION ALL FROM _request_differences)
    GROUP BY source, setting
),
ranked AS (
    SELECT d.source, d.setting, arg_max(r.place, len(r.setting)) AS rank
    FROM differences AS d
    JOIN setting_ranks AS r ON d.setting = r.setting OR starts_with(d.setting, r.setting || '.')
    GROUP BY d.source, d.setting
),
-- A name says nothing of files that are known to be equal.
equal_files AS (
    SELECT unnest(['model', 'tokenizer']) AS setting, unnest(['model_fingerprint', 'tokenizer_hash']) AS fingerprint
)
SELECT
    row_number() OVER (
        ORDER BY a_value IS NULL OR b_value IS NULL, r.rank NULLS LAST, d.setting, d.source
    )::INTEGER AS place,
    d.setting, d.source, d.a_value, d.b_value, a_value IS NOT NULL AND b_value IS NOT NULL AS known,
    coalesce(s.relevance, 'unknown') AS relevance, s.reason, d.num_requests
FROM differences AS d
LEFT JOIN ranked AS r USING (source, setting)
LEFT JOIN setting_ranks AS s ON r.rank = s.place
WHERE NOT EXISTS (
    FROM equal_files AS e
    WHERE d.source = 'runs' AND e.setting = d.setting
        AND e.fingerprint NOT IN (SELECT setting FROM differences WHERE source = 'runs')
        AND e.fingerprint IN (SELECT setting FROM _settled_columns WHERE side = 'a')
)
ORDER BY place;
-- Example: SELECT setting, a_value, b_value, reason FROM setting_differences WHERE known
COMMENT ON VIEW setting_differences IS 'What differs between the configurations of A and B: columns of runs, the engine''s configuration and a replay''s options key by key, and sampling parameters of aligned requests. What matters most comes first (setting_ranks); what one side does not tell comes last. What only tells processes, hosts and moments apart is left out. One row a setting.';
COMMENT ON COLUMN setting_differences.place IS 'Its place in the list, from 1.';
COMMENT ON COLUMN setting_differences.setting IS 'A column of runs or requests, a key of the engine''s configuration (a.b: key b of a), or options.… and capture_config.….';
COMMENT ON COLUMN setting_differences.source IS 'Where it stands: runs, requests, engine_config, options or capture_config.';
COMMENT ON COLUMN setting_differences.a_value IS 'Its value in A as text; several, with commas, where processes or requests disagree. Null where A does not tell.';
COMMENT ON COLUMN setting_differences.b_value IS 'Its value in B, likewise.';
COMMENT ON COLUMN setting_differences.known IS 'Whether both sides tell: where one does not, there may be no difference.';
COMMENT ON COLUMN setting_differences.relevance IS 'As in setting_ranks; unknown where nothing is known of its effect.';
COMMENT ON COLUMN setting_differences.reason IS 'Why it matters; null where nothing is known of its effect.';
COMMENT ON COLUMN setting_differences.num_requests IS 'Aligned requests for which it differs.';
