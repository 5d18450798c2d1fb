-- What was paired, what was not, and why.
CREATE VIEW aligned AS
SELECT
    a_request_id AS request_id, b_request_id, a_num_tokens, b_num_tokens, num_both AS num_common, fork_index,
    CASE
        WHEN fork_index IS NOT NULL THEN 'fork'
        WHEN num_both = a_num_tokens AND num_both = b_num_tokens THEN 'equal'
        WHEN num_both = a_num_tokens THEN 'A has fewer'
        WHEN num_both = b_num_tokens THEN 'B has fewer'
        ELSE 'rows missing'
    END AS ending
FROM _aligned;
-- Example: SELECT ending, count(*), median(fork_index) FROM aligned GROUP BY ending
COMMENT ON VIEW aligned IS 'Requests with a counterpart, and how far their outputs agree. One row a request.';
COMMENT ON COLUMN aligned.request_id IS 'The request, by its id in A.';
COMMENT ON COLUMN aligned.b_request_id IS 'Its id in B.';
COMMENT ON COLUMN aligned.a_num_tokens IS 'Output tokens that A delivered and the trace holds.';
COMMENT ON COLUMN aligned.b_num_tokens IS 'The same of B.';
COMMENT ON COLUMN aligned.num_common IS 'Output positions that both hold, also after a fork.';
COMMENT ON COLUMN aligned.fork_index IS 'The first output token that differs, from 0; null where none does.';
COMMENT ON COLUMN aligned.ending IS 'How the outputs compare. fork: a token differs, which is the last row in pairs. equal: they do not differ. A has fewer, B has fewer: equal as far as that one goes. rows missing: equal where both have rows, and each lacks some that the other has.';

CREATE VIEW unaligned AS
SELECT side, request_id, reason, detail FROM _unaligned
UNION ALL
SELECT 'A', a_request_id, 'counterpart without tokens', format('its counterpart ''{}'' in B has no output token', b_request_id)
FROM _aligned WHERE a_num_tokens > 0 AND b_num_tokens = 0
UNION ALL
SELECT 'B', b_request_id, 'counterpart without tokens', format('its counterpart ''{}'' in A has no output token', a_request_id)
FROM _aligned WHERE b_num_tokens > 0 AND a_num_tokens = 0
ORDER BY side, request_id;
-- Example: SELECT side, reason, count(*), min(request_id), arg_min(detail, request_id) FROM unaligned GROUP BY side, reason
COMMENT ON VIEW unaligned IS 'Requests of either trace that no row of pairs stands for, and why. One row a request.';
COMMENT ON COLUMN unaligned.side IS 'The trace that holds the request: A or B.';
COMMENT ON COLUMN unaligned.request_id IS 'The request, by its id there.';
COMMENT ON COLUMN unaligned.reason IS 'no tokens: nothing to compare. not selected: the other trace covers a part. not scored: its first row is missing. retokenised: the other trace has the same text with other ids. no external id, no prompt: nothing to pair it by. several counterparts: what pairs it is not unique. fewer equal prompts: the other trace has fewer requests of this prompt. counterpart without tokens: it is paired, but only one side has tokens. no counterpart: none of the above.';
COMMENT ON COLUMN unaligned.detail IS 'The same in words, with names and numbers.';

CREATE VIEW _unaligned_reasons AS
SELECT side, reason, count(*) AS num_requests, min(request_id) AS request_id, arg_min(detail, request_id) AS detail
FROM unaligned
GROUP BY side, reason
ORDER BY side, num_requests DESC, reason;

CREATE VIEW _alignment_summary AS
SELECT
    (SELECT method FROM _alignment) AS method,
    (SELECT count(*) FROM _aligned) AS num_matched,
    (SELECT count(*) FROM _unaligned WHERE side = 'A') AS num_only_a,
    (SELECT count(*) FROM _unaligned WHERE side = 'B') AS num_only_b;
