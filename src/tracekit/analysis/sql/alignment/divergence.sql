-- Forced tokens cannot differ: there a change of the first candidate stands for it, unless a tie explains it.
CREATE VIEW _flips AS
SELECT
    match_id, output_index, a_token_id, b_token_id, a_argmax_token_id, b_argmax_token_id, a_top1_margin, b_top1_margin
FROM _pairs
WHERE a_token_id = b_token_id AND NOT argmax_equal AND (a_forced OR b_forced);

-- Candidate lists are read only where a margin is 0: the join finds an empty right side otherwise, and reads nothing.
CREATE VIEW _a_ties AS
SELECT f.match_id, f.output_index
FROM _a_side AS t
JOIN (SELECT match_id, output_index, b_argmax_token_id FROM _flips WHERE a_top1_margin = 0) AS f
    ON t.match_id = f.match_id AND t.output_index = f.output_index
WHERE coalesce(t.top_logits[list_position(t.top_token_ids, f.b_argmax_token_id)], t.top_logits[-1]) = t.top_logits[1]
    OR t.top_logits IS NULL;

CREATE VIEW _b_ties AS
SELECT f.match_id, f.output_index
FROM _b_side AS t
JOIN (SELECT match_id, output_index, a_argmax_token_id FROM _flips WHERE b_top1_margin = 0) AS f
    ON t.match_id = f.match_id AND t.output_index = f.output_index
WHERE coalesce(t.top_logits[list_position(t.top_token_ids, f.a_argmax_token_id)], t.top_logits[-1]) = t.top_logits[1]
    OR t.top_logits IS NULL;

CREATE VIEW _divergences AS
SELECT match_id, output_index, 'argmax' AS kind, a_token_id, b_token_id, a_argmax_token_id, b_argmax_token_id, a_top1_margin, b_top1_margin
FROM _flips
ANTI JOIN (FROM _a_ties UNION ALL FROM _b_ties) AS ties USING (match_id, output_index)
UNION ALL
SELECT match_id, output_index, 'token' AS kind, a_token_id, b_token_id, a_argmax_token_id, b_argmax_token_id, a_top1_margin, b_top1_margin
FROM _pairs
SEMI JOIN (SELECT match_id, fork_index FROM _aligned WHERE fork_index IS NOT NULL) AS forks
    ON _pairs.match_id = forks.match_id AND output_index = fork_index;

CREATE VIEW first_divergence AS
SELECT a_request_id AS request_id, output_index, kind, a_token_id, b_token_id, a_argmax_token_id, b_argmax_token_id, a_top1_margin, b_top1_margin
FROM _aligned
LEFT JOIN (
    SELECT match_id, unnest(arg_min(columns, output_index))
    FROM (
        SELECT match_id, output_index, struct_pack(output_index, kind, a_token_id, b_token_id, a_argmax_token_id, b_argmax_token_id, a_top1_margin, b_top1_margin) AS columns
        FROM _divergences
    )
    GROUP BY match_id
) AS d USING (match_id)
ORDER BY request_id;
COMMENT ON VIEW first_divergence IS 'Where each aligned request first diverges; the columns are null where it never does. One row a request.';
COMMENT ON COLUMN first_divergence.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN first_divergence.output_index IS 'The output token at which it diverges, from 0.';
COMMENT ON COLUMN first_divergence.kind IS 'token: the token ids differ. argmax: the tokens were forced, and the first candidates of the raw logits differ, exact ties not counted. Null: no divergence.';
COMMENT ON COLUMN first_divergence.a_token_id IS 'The token in A.';
COMMENT ON COLUMN first_divergence.b_token_id IS 'The token in B.';
COMMENT ON COLUMN first_divergence.a_argmax_token_id IS 'The first candidate in A.';
COMMENT ON COLUMN first_divergence.b_argmax_token_id IS 'The first candidate in B.';
COMMENT ON COLUMN first_divergence.a_top1_margin IS 'Largest raw logit of A minus its second largest; 0 for a tie.';
COMMENT ON COLUMN first_divergence.b_top1_margin IS 'Largest raw logit of B minus its second largest; 0 for a tie.';

-- What a report says of first_divergence, in one row.
CREATE VIEW _divergence_summary AS
SELECT
    count(*) FILTER (kind = 'token') AS num_token,
    count(*) FILTER (kind = 'argmax') AS num_argmax,
    count(*) FILTER (kind IS NULL) AS num_none,
    min(output_index) AS earliest_output_index,
    median(output_index) AS median_output_index
FROM first_divergence;
