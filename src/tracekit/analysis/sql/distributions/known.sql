-- What is known of each side: its candidates, its token, and in a replay its own logits at the candidates of the trace
-- that it replays.
CREATE VIEW _parentage AS
SELECT
    (SELECT parent FROM b._manifest) = (SELECT trace_id FROM a._manifest) AS b_replays_a,
    (SELECT parent FROM a._manifest) = (SELECT trace_id FROM b._manifest) AS a_replays_b;

-- Of what a trainer computes, nobody knows how it was rounded.
CREATE VIEW _a_sums AS
SELECT
    run_id, any_value(vocab_size) AS vocab_size,
    bool_and(role = 'replay' AND backend IN ('hf', 'llamacpp', 'head')) AS is_exact,
    bool_or(role = 'trainer' OR coalesce((options ->> '$.log_softmax_dtype') <> 'float32', false)) AS is_rounded
FROM a.runs
GROUP BY run_id;

CREATE VIEW _b_sums AS
SELECT
    run_id, any_value(vocab_size) AS vocab_size,
    bool_and(role = 'replay' AND backend IN ('hf', 'llamacpp', 'head')) AS is_exact,
    bool_or(role = 'trainer' OR coalesce((options ->> '$.log_softmax_dtype') <> 'float32', false)) AS is_rounded
FROM b.runs
GROUP BY run_id;

CREATE MACRO _extra(ids, others) AS list_filter(range(1, len(others) + 1), lambda i: NOT list_contains(ids, others[i]));

CREATE VIEW _candidate_pairs AS
SELECT
    a.place, a.request_id, a.output_index, a.position, a.token_id,
    coalesce(a.top_token_ids, []) AS a_ids, coalesce(a.top_logits, [])::DOUBLE[] AS a_logits,
    coalesce(b.top_token_ids, []) AS b_ids, coalesce(b.top_logits, [])::DOUBLE[] AS b_logits,
    CASE WHEN a_replays_b AND a.request_id = b.request_id AND len(a.parent_top_logits) = len(b.top_token_ids)
        THEN _extra(a.top_token_ids, b.top_token_ids) ELSE [] END AS a_extra,
    CASE WHEN b_replays_a AND a.request_id = b.request_id AND len(b.parent_top_logits) = len(a.top_token_ids)
        THEN _extra(b.top_token_ids, a.top_token_ids) ELSE [] END AS b_extra,
    a.parent_top_logits AS a_parent, b.parent_top_logits AS b_parent, b.token_id AS b_token_id,
    b.rank AS own_rank, b.num_tied AS own_num_tied,
    a.logit::DOUBLE AS a_logit, b.logit::DOUBLE AS b_logit,
    coalesce(s.is_rounded, false) OR coalesce(t.is_rounded, false) OR coalesce(s.vocab_size <> t.vocab_size, false) AS is_unbounded,
    a.logsumexp::DOUBLE AS a_norm, b.logsumexp::DOUBLE AS b_norm,
    coalesce(a.logit_min::DOUBLE, '-inf') AS a_min, coalesce(b.logit_min::DOUBLE, '-inf') AS b_min,
    _logsumexp_error(a.logsumexp, s.vocab_size, s.is_exact) AS a_error,
    _logsumexp_error(b.logsumexp, t.vocab_size, t.is_exact) AS b_error,
    s.vocab_size AS a_vocab_size, t.vocab_size AS b_vocab_size
FROM _a_side AS a
JOIN _b_side AS b ON a.place = b.place
JOIN _a_sums AS s ON a.run_id = s.run_id
JOIN _b_sums AS t ON b.run_id = t.run_id
CROSS JOIN _parentage;

CREATE VIEW _known_logits AS
SELECT
    *,
    list_concat(a_ids, [b_ids[i] FOR i IN a_extra]) AS a_most_ids,
    list_concat(a_logits, [a_parent[i]::DOUBLE FOR i IN a_extra]) AS a_most,
    list_concat(b_ids, [a_ids[i] FOR i IN b_extra]) AS b_most_ids,
    list_concat(b_logits, [b_parent[i]::DOUBLE FOR i IN b_extra]) AS b_most
FROM _candidate_pairs;

CREATE VIEW _known_pairs AS
SELECT
    *,
    list_transform(a_known_ids, lambda id: b_known[list_position(b_known_ids, id)]) AS b_at_a,
    list_transform(b_known_ids, lambda id: a_known[list_position(a_known_ids, id)]) AS a_at_b
FROM (
    SELECT
        *,
        CASE WHEN a_has_token THEN a_most_ids ELSE list_append(a_most_ids, token_id) END AS a_known_ids,
        CASE WHEN a_has_token THEN a_most ELSE list_append(a_most, a_logit) END AS a_known,
        CASE WHEN b_has_token THEN b_most_ids ELSE list_append(b_most_ids, b_token_id) END AS b_known_ids,
        CASE WHEN b_has_token THEN b_most ELSE list_append(b_most, b_logit) END AS b_known
    FROM (
        SELECT
            *,
            a_logit IS NULL OR list_contains(a_most_ids, token_id) AS a_has_token,
            b_logit IS NULL OR list_contains(b_most_ids, b_token_id) AS b_has_token
        FROM _known_logits
    )
);
