-- Flips that a tie may explain, of the doubtful requests.
-- Whether a token's logit equals the first; where it is no candidate, the last one bounds it, and without any it may.
CREATE MACRO _ties(logits, token_ids, token_id) AS
    logits IS NULL OR coalesce(logits[list_position(token_ids, token_id)], logits[-1]) = logits[1];

CREATE VIEW _find_tied_flips AS
SELECT
    p.a_run_id AS run_id, p.a_request_id AS request_id, output_index,
    coalesce(a_top1_margin = 0 AND _ties(a_top_logits, a_top_token_ids, b_argmax_token_id), false)
        OR coalesce(b_top1_margin = 0 AND _ties(b_top_logits, b_top_token_ids, a_argmax_token_id), false) AS tied
FROM pairs AS p
JOIN _doubtful AS t ON p.a_run_id = t.run_id AND p.a_request_id = t.request_id
WHERE a_token_id = b_token_id AND NOT argmax_equal AND (a_forced OR b_forced)
    AND coalesce(NOT (a_top1_margin > 0 AND b_top1_margin > 0), true);
