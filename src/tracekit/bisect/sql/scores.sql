-- What both sides give each compared token: of raw logprobs, or of processed ones.
SELECT
    a_run_id AS run_id, request_id, output_index,
    CASE WHEN $raw THEN a_logprob ELSE a_processed_logprob END::DOUBLE AS a_value,
    CASE WHEN $raw THEN b_logprob ELSE b_processed_logprob END::DOUBLE AS b_value
FROM pairs
WHERE a_token_id = b_token_id;
