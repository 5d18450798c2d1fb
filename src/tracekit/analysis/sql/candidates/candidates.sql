-- Candidates as rows. Only the modules candidates and distributions read the lists: that costs ten times the rest.
CREATE VIEW candidates AS
SELECT
    run_id, request_id, output_index, position, place, candidate AS token_id, candidate_logit AS logit,
    candidate_logit::DOUBLE - logsumexp AS logprob, candidate = token_id AS is_token
FROM (
    SELECT
        run_id, request_id, output_index, position, token_id, logsumexp, unnest(top_token_ids) AS candidate,
        unnest(top_logits) AS candidate_logit, generate_subscripts(top_token_ids, 1) AS place
    FROM tokens
);
COMMENT ON VIEW candidates IS 'Candidates of delivered tokens, one row a position and candidate. Reads the lists: filter requests and positions first.';
COMMENT ON COLUMN candidates.run_id IS 'As in tokens.';
COMMENT ON COLUMN candidates.request_id IS 'As in tokens.';
COMMENT ON COLUMN candidates.output_index IS 'Which output token, from 0.';
COMMENT ON COLUMN candidates.position IS 'Place of the token in the whole sequence, from 0.';
COMMENT ON COLUMN candidates.place IS 'Place among the candidates, from 1: by raw logit, then by id.';
COMMENT ON COLUMN candidates.token_id IS 'The candidate.';
COMMENT ON COLUMN candidates.logit IS 'Its raw logit.';
COMMENT ON COLUMN candidates.logprob IS 'Its raw logprob in nat: logit - logsumexp.';
COMMENT ON COLUMN candidates.is_token IS 'Whether it is the token of this position.';
