-- Candidates of both sides side by side, and how far the two lists agree.
CREATE VIEW pair_candidates AS
SELECT
    request_id, output_index, position, candidate AS token_id,
    list_position(a_ids, candidate) AS a_place, list_position(b_ids, candidate) AS b_place,
    a_known[list_position(a_known_ids, candidate)] AS a_logit,
    b_known[list_position(b_known_ids, candidate)] AS b_logit,
    a_known[list_position(a_known_ids, candidate)] - a_norm AS a_logprob,
    b_known[list_position(b_known_ids, candidate)] - b_norm AS b_logprob
FROM (
    SELECT
        request_id, output_index, position, a_ids, b_ids, a_known_ids, b_known_ids, a_known, b_known, a_norm, b_norm,
        unnest(list_concat(a_known_ids, [b_known_ids[i] FOR i IN _extra(a_known_ids, b_known_ids)])) AS candidate
    FROM _known_pairs
);
COMMENT ON VIEW pair_candidates IS 'Tokens of which either side knows the logit: its candidates, its token, and in a replay the candidates of the trace that it replays. Reads the lists. One row a position and token.';
COMMENT ON COLUMN pair_candidates.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN pair_candidates.output_index IS 'Which output token, from 0.';
COMMENT ON COLUMN pair_candidates.position IS 'Place of the token in the whole sequence, from 0.';
COMMENT ON COLUMN pair_candidates.token_id IS 'The token.';
COMMENT ON COLUMN pair_candidates.a_place IS 'A: its place among the candidates, from 1; null where it is none.';
COMMENT ON COLUMN pair_candidates.b_place IS 'B: the same.';
COMMENT ON COLUMN pair_candidates.a_logit IS 'A: its raw logit, where known.';
COMMENT ON COLUMN pair_candidates.b_logit IS 'B: the same.';
COMMENT ON COLUMN pair_candidates.a_logprob IS 'A: its raw logprob in nat, where known.';
COMMENT ON COLUMN pair_candidates.b_logprob IS 'B: the same.';

-- Ids that tie with the last place are in a list by their id alone: a token that the other side is known to score as
-- high as its own last candidate counts as common.
CREATE MACRO _num_common(ids, other_ids, other_known_ids, other_known, last) AS len(list_filter(ids, lambda id:
    list_contains(other_ids, id) OR coalesce(other_known[list_position(other_known_ids, id)] >= last, false)));

CREATE VIEW candidate_overlap AS
SELECT
    request_id, output_index, position, num_candidates, num_common,
    CASE WHEN num_candidates > 0 THEN num_common / (2 * num_candidates - num_common) END AS jaccard,
    num_common_tied,
    CASE WHEN num_candidates > 0 THEN num_common_tied / (2 * num_candidates - num_common_tied) END AS jaccard_tied,
    a_contains_token, b_contains_token, b_rank, b_num_tied
FROM (
    SELECT
        *, len(list_intersect(a_top, b_top)) AS num_common,
        greatest(
            _num_common(a_top, b_top, b_known_ids, b_known, b_logits[num_candidates]),
            _num_common(b_top, a_top, a_known_ids, a_known, a_logits[num_candidates])
        ) AS num_common_tied,
        list_contains(a_top, token_id) AS a_contains_token, list_contains(b_top, token_id) AS b_contains_token,
        CASE
            WHEN token_logit > b_logits[-1] OR b_is_token OR list_contains(b_ids, token_id)
                THEN CASE WHEN b_is_token THEN own_rank ELSE 1 + len(list_filter(b_logits, lambda z: z > token_logit)) END
        END AS b_rank,
        CASE
            WHEN b_is_token THEN own_num_tied
            WHEN token_logit > b_logits[-1] THEN len(list_filter(b_logits, lambda z: z = token_logit)) - 1
        END AS b_num_tied
    FROM (
        SELECT
            *, least(len(a_ids), len(b_ids)) AS num_candidates, a_ids[1:least(len(a_ids), len(b_ids))] AS a_top,
            b_ids[1:least(len(a_ids), len(b_ids))] AS b_top, token_id = b_token_id AS b_is_token,
            b_known[list_position(b_known_ids, token_id)] AS token_logit
        FROM _known_pairs
    )
);
COMMENT ON VIEW candidate_overlap IS 'How far the candidates of both sides agree, over as many as both keep. Reads the lists. One row a position.';
COMMENT ON COLUMN candidate_overlap.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN candidate_overlap.output_index IS 'Which output token, from 0.';
COMMENT ON COLUMN candidate_overlap.position IS 'Place of the token in the whole sequence, from 0.';
COMMENT ON COLUMN candidate_overlap.num_candidates IS 'k: candidates that both sides keep.';
COMMENT ON COLUMN candidate_overlap.num_common IS 'Ids that are among the first k of both.';
COMMENT ON COLUMN candidate_overlap.jaccard IS 'Common ids by ids of either.';
COMMENT ON COLUMN candidate_overlap.num_common_tied IS 'The same, where an id also counts as common that the other side is known to score as high as its own last of the k: at such a tie the smaller id decides who is in the list.';
COMMENT ON COLUMN candidate_overlap.jaccard_tied IS 'jaccard with num_common_tied.';
COMMENT ON COLUMN candidate_overlap.a_contains_token IS 'Whether the token of A is among the first k of A.';
COMMENT ON COLUMN candidate_overlap.b_contains_token IS 'Whether the token of A is among the first k of B.';
COMMENT ON COLUMN candidate_overlap.b_rank IS 'Rank of the token of A in B: 1 + number of strictly greater raw logits; null where B has another token and does not keep this one among its candidates.';
COMMENT ON COLUMN candidate_overlap.b_num_tied IS 'How many other tokens of B have exactly its logit; null where that cannot be told from the candidates.';
