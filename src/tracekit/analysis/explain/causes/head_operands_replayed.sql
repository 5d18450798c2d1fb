-- B's head took A's hidden states: what comes out of it differently was made there.
SELECT place, request_id, output_index, position, a_logit, b_logit, d
FROM explained
WHERE d IS NOT NULL AND a_logit <> b_logit
