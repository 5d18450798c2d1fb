-- KL over the whole vocabulary, where both traces hold whole logits rows, as sum(q - p - p ln(q / p)): terms are small
-- where the rows are alike, and an error of a logsumexp cancels, so that no digit is lost. Nothing but the two tables of
-- rows is joined: joined to tokens first, DuckDB would hold the rows of both sides.
CREATE VIEW _a_logits AS
SELECT
    place, logits, len(logits) AS vocab_size,
    largest + ln(list_sum(list_transform(logits, lambda z: exp(z::DOUBLE - largest)))) AS norm
FROM (
    SELECT m.match_id::BIGINT * 4294967296 + t.output_index AS place, t.logits, list_max(t.logits)::DOUBLE AS largest
    FROM a.logits AS t
    JOIN _aligned AS m ON t.run_id = m.a_run_id AND t.request_id = m.a_request_id
    WHERE t.output_index < m.num_compared
);

CREATE VIEW _b_logits AS
SELECT
    place, logits, len(logits) AS vocab_size,
    largest + ln(list_sum(list_transform(logits, lambda z: exp(z::DOUBLE - largest)))) AS norm
FROM (
    SELECT m.match_id::BIGINT * 4294967296 + t.output_index AS place, t.logits, list_max(t.logits)::DOUBLE AS largest
    FROM b.logits AS t
    JOIN _aligned AS m ON t.run_id = m.b_run_id AND t.request_id = m.b_request_id
    WHERE t.output_index < m.num_compared
);

-- p_ratio is p ln(q / p), which is 0 at p = 0 and -inf at q = 0, however small p is.
CREATE VIEW _logits_sums AS
SELECT
    place, count(*) AS vocab_size, any_value(a_norm) AS a_norm, any_value(b_norm) AS b_norm,
    sum(q - p - p_ratio) AS kl_ab, sum(p - q - q_ratio) AS kl_ba,
    sum(p_ratio) FILTER (x <= -16) AS p_ratio_skipped, sum(p_ratio) FILTER (x > -16) AS p_ratio_kept
FROM (
    SELECT
        *,
        CASE WHEN x = '-inf'::DOUBLE THEN 0 WHEN y = '-inf'::DOUBLE THEN y ELSE p * (y - x) END AS p_ratio,
        CASE WHEN y = '-inf'::DOUBLE THEN 0 WHEN x = '-inf'::DOUBLE THEN x ELSE q * (x - y) END AS q_ratio
    FROM (
        SELECT *, exp(x) AS p, exp(y) AS q
        FROM (
            SELECT
                l.place, l.norm AS a_norm, r.norm AS b_norm, unnest(l.logits)::DOUBLE - l.norm AS x,
                unnest(r.logits)::DOUBLE - r.norm AS y
            FROM _a_logits AS l
            JOIN _b_logits AS r ON l.place = r.place AND l.vocab_size = r.vocab_size
        )
    )
)
GROUP BY place;

CREATE VIEW kld AS
SELECT
    request_id, output_index, position, token_id, vocab_size, kl_ab, kl_ba, kl_llama_cpp, same_top, a_logprob, b_logprob,
    exp(b_logprob) - exp(a_logprob) AS delta_p
FROM (
    SELECT
        a.request_id, a.output_index, a.position, a.token_id, s.vocab_size, s.kl_ab, s.kl_ba,
        CASE WHEN s.kl_ab = 'inf'::DOUBLE THEN -s.p_ratio_kept ELSE s.kl_ab + coalesce(s.p_ratio_skipped, 0) END AS kl_llama_cpp,
        a.argmax_token_id = b.argmax_token_id AS same_top,
        a.logit - s.a_norm AS a_logprob,
        CASE WHEN a.token_id = b.token_id THEN b.logit - s.b_norm END AS b_logprob
    FROM _logits_sums AS s
    JOIN _a_side AS a ON s.place = a.place
    JOIN _b_side AS b ON s.place = b.place
);
COMMENT ON VIEW kld IS 'KL divergence over the whole vocabulary at pairs where both traces hold whole logits rows of equal length; exact to 1e-15 or 1e-9 of itself. One row a position.';
COMMENT ON COLUMN kld.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN kld.output_index IS 'Which output token, from 0.';
COMMENT ON COLUMN kld.position IS 'Place of the token in the whole sequence, from 0.';
COMMENT ON COLUMN kld.token_id IS 'The token in A.';
COMMENT ON COLUMN kld.vocab_size IS 'Length of the rows.';
COMMENT ON COLUMN kld.kl_ab IS 'KL(A, B) = sum of p_A ln(p_A / p_B) of the raw distributions, in nat; inf where B excludes a token that A does not.';
COMMENT ON COLUMN kld.kl_ba IS 'KL(B, A), in nat.';
COMMENT ON COLUMN kld.kl_llama_cpp IS 'KL(A, B) as llama.cpp sums it: vocabulary entries with a logprob of at most -16 in A (the base) are skipped. Its 16-bit storage of base logprobs is not imitated.';
COMMENT ON COLUMN kld.same_top IS 'Whether both sides have the same first candidate: the smallest id among the largest logits.';
COMMENT ON COLUMN kld.a_logprob IS 'Raw logprob of the token in A, in float64 from the whole row.';
COMMENT ON COLUMN kld.b_logprob IS 'Raw logprob of the same token in B; null where B has another token.';
COMMENT ON COLUMN kld.delta_p IS 'Probability of the token in B minus that in A.';
