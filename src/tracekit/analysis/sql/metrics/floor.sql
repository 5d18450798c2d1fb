-- What rounding logits to bf16 on both sides would make of two equal models: a model of the noise floor, not a measurement.
-- A logit z lies on a grid of 2^(floor(log2 |z|) - 7), and both roundings are uniform within half a step: their difference
-- has the variance step² / 6 and the mean absolute value step / 3. The normaliser averages over the vocabulary and adds
-- next to nothing. Temperature divides the step.
CREATE MACRO _bf16_step(z) AS CASE WHEN z = 0 THEN 0 ELSE 2::DOUBLE ** (floor(log2(abs(z))) - 7) END;

-- From the logits of A alone, a request at a time: tokens of B are not needed for it. Of many requests those of about a
-- million tokens, which is enough for a model.
CREATE VIEW _bf16_steps AS
SELECT s.temperature, t.*
FROM (
    SELECT run_id, request_id, count(step) AS num, sum(step) AS step_sum, sum(step * step) AS step_squared, max(step) AS step_max
    FROM (
        SELECT run_id, request_id, _bf16_step(logit::DOUBLE) AS step
        FROM a.tokens_all
        WHERE NOT is_prompt AND hash(request_id) % (SELECT greatest(1, sum(num_tokens) // 1000000)::UBIGINT FROM a._keys) = 0
    )
    GROUP BY run_id, request_id
) AS t
JOIN _sequences AS s ON t.run_id = s.run_id AND t.request_id = s.request_id
WHERE num > 0 AND EXISTS (FROM (FROM a.runs UNION ALL FROM b.runs) WHERE head_output_dtype = 'bfloat16');

CREATE VIEW modelled_floor AS
SELECT basis, unnest([
    {'name': 'k2_kl', 'value': sum(step_squared / scale / scale) / sum(num) / 12},
    {'name': 'k3_kl', 'value': sum(step_squared / scale / scale) / sum(num) / 12},
    {'name': 'logprob_abs_diff_mean', 'value': sum(step_sum / scale) / sum(num) / 3},
    {'name': 'logprob_abs_diff_max', 'value': max(step_max / scale)}
], recursive := true)
FROM (
    SELECT 'raw' AS basis, 1 AS scale, * FROM _bf16_steps
    UNION ALL
    SELECT 'processed' AS basis, temperature AS scale, * FROM _bf16_steps WHERE temperature > 0
)
GROUP BY basis;
COMMENT ON VIEW modelled_floor IS 'The noise floor that rounding logits to bf16 on both sides implies: a model, where no repeat was recorded to measure it. Empty where neither side is known to put out bf16 logits. One row a basis and metric.';
COMMENT ON COLUMN modelled_floor.basis IS 'As in metrics.';
COMMENT ON COLUMN modelled_floor.name IS 'The metric.';
COMMENT ON COLUMN modelled_floor.value IS 'Its value where nothing but that rounding differs.';
