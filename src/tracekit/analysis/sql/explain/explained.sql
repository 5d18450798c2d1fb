-- What `tracekit explain` explains: the values that each side's client used, and what a cause may depend on. Narrow types:
-- explain keeps all rows in memory.
CREATE VIEW _clients AS
SELECT
    (SELECT role FROM a._manifest) = 'trainer' AS a_trains, (SELECT role FROM b._manifest) = 'trainer' AS b_trains,
    coalesce((SELECT bool_or(role = 'replay' AND backend = 'hf') FROM a.runs), false) AS a_stands_in,
    coalesce((SELECT bool_or(role = 'replay' AND backend = 'hf') FROM b.runs), false) AS b_stands_in;

-- What a client got: what the engine reported, or what a trainer computed.
CREATE MACRO _given(reported, trains, processed, raw) AS
    coalesce(reported, CASE WHEN trains THEN coalesce(processed, raw) END);
-- What is held against it on a side without a client: a trainer's stand-in has the distribution that tokens are drawn
-- from; else whatever the other side's value is of.
CREATE MACRO _held_against(other, other_raw, other_processed, stands_in, raw, processed, temperature) AS
    CASE
        WHEN temperature = 0 THEN coalesce(raw, processed)
        WHEN stands_in OR other IS NULL THEN coalesce(processed, raw)
        WHEN abs(other - other_raw) <= coalesce(abs(other - other_processed), 'inf'::FLOAT) THEN coalesce(raw, processed)
        ELSE coalesce(processed, raw)
    END;

CREATE VIEW _explained_requests AS
SELECT
    m.match_id, m.a_request_id AS request_id, m.a_run_id, m.b_run_id, m.b_request_id, a.temperature, a.top_p, a.top_k,
    a.min_p, b.temperature AS b_temperature,
    coalesce(a.repetition_penalty <> 1 OR a.presence_penalty <> 0 OR a.frequency_penalty <> 0, false) AS has_penalties,
    a.logit_bias IS NOT NULL AS is_biased,
    a.allowed_token_ids IS NOT NULL OR a.bad_words_token_ids IS NOT NULL OR a.structured_output IS NOT NULL AS is_masked,
    has_penalties OR is_biased OR is_masked AS is_penalised,
    a.num_prompt_tokens, coalesce(a.num_cached_tokens, 0) AS a_num_cached_tokens,
    coalesce(b.num_cached_tokens, 0) AS b_num_cached_tokens, a.lora AS a_lora, b.lora AS b_lora,
    coalesce(o.num_preemptions, 0) AS a_num_preemptions, coalesce(p.num_preemptions, 0) AS b_num_preemptions
FROM _aligned AS m
LEFT JOIN a.requests AS a ON m.a_run_id = a.run_id AND m.a_request_id = a.request_id
LEFT JOIN b.requests AS b ON m.b_run_id = b.run_id AND m.b_request_id = b.request_id
LEFT JOIN a.outcomes AS o ON m.a_run_id = o.run_id AND m.a_request_id = o.request_id
LEFT JOIN b.outcomes AS p ON m.b_run_id = p.run_id AND m.b_request_id = p.request_id;

CREATE VIEW _explained_tokens AS
SELECT
    m.match_id::BIGINT * 4294967296 + p.output_index AS place, m.match_id::INTEGER AS match_id,
    p.output_index::INTEGER AS output_index, p.position::INTEGER AS position, p.token_id::INTEGER AS token_id,
    p.b_token_id::INTEGER AS b_token_id,
    p.a_token_id <> p.b_token_id AS is_fork,
    p.a_logprob::FLOAT AS a_raw, p.b_logprob::FLOAT AS b_raw,
    p.a_processed_logprob::FLOAT AS a_processed, p.b_processed_logprob::FLOAT AS b_processed,
    _given(p.a_reported_logprob, a_trains, p.a_processed_logprob, p.a_logprob)::FLOAT AS a_given,
    _given(p.b_reported_logprob, b_trains, p.b_processed_logprob, p.b_logprob)::FLOAT AS b_given,
    a_stands_in, b_stands_in,
    p.a_logit::FLOAT AS a_logit, p.b_logit::FLOAT AS b_logit,
    p.a_logsumexp::FLOAT AS a_logsumexp, p.b_logsumexp::FLOAT AS b_logsumexp,
    p.a_kept_mass::FLOAT AS a_kept_mass, p.b_kept_mass::FLOAT AS b_kept_mass,
    p.a_top1_margin::FLOAT AS a_top1_margin, p.b_top1_margin::FLOAT AS b_top1_margin,
    p.a_argmax_token_id::INTEGER AS a_argmax_token_id, p.b_argmax_token_id::INTEGER AS b_argmax_token_id,
    p.a_draft_index::INTEGER AS a_draft_index, p.b_draft_index::INTEGER AS b_draft_index,
    p.a_weight_version::INTEGER AS a_weight_version, p.b_weight_version::INTEGER AS b_weight_version,
    p.a_kv_weight_version_min::INTEGER AS a_kv_weight_version_min,
    p.b_kv_weight_version_min::INTEGER AS b_kv_weight_version_min,
    p.b_trainer_step::INTEGER AS b_trainer_step, p.b_coupled_token_id::INTEGER AS b_coupled_token_id,
    p.a_step_id::INTEGER AS a_step_id, p.b_step_id::INTEGER AS b_step_id,
    s.num_requests::INTEGER AS a_num_requests, t.num_requests::INTEGER AS b_num_requests
FROM _pairs AS p
JOIN _aligned AS m ON p.match_id = m.match_id
CROSS JOIN _clients
LEFT JOIN a.steps AS s ON p.a_run_id = s.run_id AND p.a_step_id = s.step_id
LEFT JOIN b.steps AS t ON p.b_run_id = t.run_id AND p.b_step_id = t.step_id;

CREATE VIEW _valued_tokens AS
SELECT
    t.* EXCLUDE (a_given, b_given, a_stands_in, b_stands_in),
    coalesce(a_given, _held_against(b_given, b_raw, b_processed, a_stands_in, a_raw, a_processed, temperature)) AS a_value,
    CASE WHEN NOT is_fork THEN
        coalesce(b_given, _held_against(a_given, a_raw, a_processed, b_stands_in, b_raw, b_processed, temperature))
    END AS b_value
FROM _explained_tokens AS t
JOIN _explained_requests AS q ON t.match_id = q.match_id;

CREATE VIEW explained AS
SELECT
    t.place, r.request_id, t.output_index, t.position, t.match_id, t.token_id, t.is_fork,
    t.a_value, t.b_value, t.b_value::DOUBLE - t.a_value::DOUBLE AS d,
    t.* EXCLUDE (place, output_index, position, match_id, token_id, is_fork, a_value, b_value),
    r.* EXCLUDE (request_id, match_id)
FROM _valued_tokens AS t
JOIN _explained_requests AS r ON t.match_id = r.match_id;
-- Example: SELECT a_weight_version, avg(d * d) / 2 AS k2 FROM explained GROUP BY a_weight_version
COMMENT ON VIEW explained IS 'What `tracekit explain` explains: of each compared token the value that each side''s client used, their difference, and what a cause may depend on. One row a compared token.';
COMMENT ON COLUMN explained.place IS 'Match and output index in one number.';
COMMENT ON COLUMN explained.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN explained.output_index IS 'Which output token, from 0.';
COMMENT ON COLUMN explained.position IS 'Place of the token in the whole sequence, from 0.';
COMMENT ON COLUMN explained.match_id IS 'Number of the pair of requests.';
COMMENT ON COLUMN explained.token_id IS 'The token in A.';
COMMENT ON COLUMN explained.b_token_id IS 'The token in B.';
COMMENT ON COLUMN explained.is_fork IS 'Whether B has another token here.';
COMMENT ON COLUMN explained.a_value IS 'What A''s client used in nat: the reported logprob, or what a trainer computed; on a side without a client, what the other side''s value is of.';
COMMENT ON COLUMN explained.b_value IS 'B: the same; null where B has another token.';
COMMENT ON COLUMN explained.d IS 'b_value - a_value in nat.';
COMMENT ON COLUMN explained.a_raw IS 'A: raw logprob.';
COMMENT ON COLUMN explained.b_raw IS 'B: raw logprob.';
COMMENT ON COLUMN explained.a_processed IS 'A: processed logprob.';
COMMENT ON COLUMN explained.b_processed IS 'B: processed logprob.';
COMMENT ON COLUMN explained.a_logit IS 'A: raw logit of the token.';
COMMENT ON COLUMN explained.b_logit IS 'B: raw logit of the token.';
COMMENT ON COLUMN explained.a_logsumexp IS 'A: of the raw logits.';
COMMENT ON COLUMN explained.b_logsumexp IS 'B: of the raw logits.';
COMMENT ON COLUMN explained.a_kept_mass IS 'A: probability that truncation kept.';
COMMENT ON COLUMN explained.b_kept_mass IS 'B: probability that truncation kept.';
COMMENT ON COLUMN explained.a_top1_margin IS 'A: margin of the first candidate.';
COMMENT ON COLUMN explained.b_top1_margin IS 'B: margin of the first candidate.';
COMMENT ON COLUMN explained.a_argmax_token_id IS 'A: first candidate.';
COMMENT ON COLUMN explained.b_argmax_token_id IS 'B: first candidate.';
COMMENT ON COLUMN explained.a_draft_index IS 'A: place among the tokens of one speculative draft.';
COMMENT ON COLUMN explained.b_draft_index IS 'B: place among the tokens of one speculative draft.';
COMMENT ON COLUMN explained.a_weight_version IS 'A: weight version.';
COMMENT ON COLUMN explained.b_weight_version IS 'B: weight version.';
COMMENT ON COLUMN explained.a_kv_weight_version_min IS 'A: oldest weight version behind the KV entries.';
COMMENT ON COLUMN explained.b_kv_weight_version_min IS 'B: oldest weight version behind the KV entries.';
COMMENT ON COLUMN explained.a_step_id IS 'A: engine step.';
COMMENT ON COLUMN explained.b_step_id IS 'B: engine step.';
COMMENT ON COLUMN explained.a_num_requests IS 'A: requests in the step''s batch.';
COMMENT ON COLUMN explained.b_num_requests IS 'B: requests in the step''s batch.';
COMMENT ON COLUMN explained.a_num_cached_tokens IS 'A: prompt tokens that the prefix cache had; 0 where unknown.';
COMMENT ON COLUMN explained.b_num_cached_tokens IS 'B: prompt tokens that the prefix cache had; 0 where unknown.';
COMMENT ON COLUMN explained.a_lora IS 'A: the request''s LoRA adapter.';
COMMENT ON COLUMN explained.b_lora IS 'B: the request''s LoRA adapter.';
COMMENT ON COLUMN explained.a_num_preemptions IS 'A: how often the request was preempted; 0 where unknown.';
COMMENT ON COLUMN explained.b_num_preemptions IS 'B: how often the request was preempted; 0 where unknown.';
COMMENT ON COLUMN explained.a_run_id IS 'A: run.';
COMMENT ON COLUMN explained.b_run_id IS 'B: run.';
COMMENT ON COLUMN explained.b_trainer_step IS 'B: the trainer''s step.';
COMMENT ON COLUMN explained.b_coupled_token_id IS 'B: what the recorded draw picks from B''s distribution.';
COMMENT ON COLUMN explained.temperature IS 'A: of the request.';
COMMENT ON COLUMN explained.b_temperature IS 'B: of the request.';
COMMENT ON COLUMN explained.top_p IS 'A: of the request.';
COMMENT ON COLUMN explained.top_k IS 'A: of the request.';
COMMENT ON COLUMN explained.min_p IS 'A: of the request.';
COMMENT ON COLUMN explained.has_penalties IS 'A: whether the request has a repetition, presence or frequency penalty.';
COMMENT ON COLUMN explained.is_biased IS 'A: whether the request has a logit bias.';
COMMENT ON COLUMN explained.is_masked IS 'A: whether the request allows some tokens only: allowed or bad ones, or structured output.';
COMMENT ON COLUMN explained.is_penalised IS 'A: whether the request has penalties, a bias or a mask.';
COMMENT ON COLUMN explained.num_prompt_tokens IS 'A: length of the prompt.';
COMMENT ON COLUMN explained.b_request_id IS 'The request, by its id in B.';
