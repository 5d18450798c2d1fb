-- What the side's own raw logits and its request's parameters allow: no less than the logprob before truncation, and no
-- more than is left where truncation keeps as little as it may. A token outside is moved to the other side's value, or to
-- the nearest one that is allowed.
WITH allowed AS (
    SELECT
        e.place, e.request_id, e.output_index, e.position, e.d, e.${side}_draft_index AS draft_index,
        r.temperature, r.top_p, r.top_k, r.min_p, e.${side}_value AS value, e.${other}_value AS other,
        logprob_scaled(
            c.logit, c.logits, c.rest_size, c.rest_norm, c.rest_mean, 1 / r.temperature::DOUBLE
        ) AS lowest,
        lowest - CASE
            WHEN coalesce(r.top_p, 1) = 1 AND coalesce(r.top_k, 0) <= 0 AND coalesce(r.min_p, 0) = 0 THEN 0
            WHEN coalesce(r.top_k, 0) <= 0 AND coalesce(r.min_p, 0) = 0 THEN ln(r.top_p::DOUBLE)
            ELSE logprob_scaled(
                c.logits[1], c.logits, c.rest_size, c.rest_norm, c.rest_mean, 1 / r.temperature::DOUBLE
            )
        END AS highest
    FROM explained AS e
    JOIN $curves AS c ON e.place = c.place
    JOIN ${side}.requests AS r ON e.${side}_run_id = r.run_id AND $request_id = r.request_id
    WHERE e.d IS NOT NULL AND (NOT isfinite(e.d) OR abs(e.d) > $tolerance) AND r.temperature > 0 AND NOT e.is_penalised AND coalesce(r.min_tokens, 0) <= e.output_index
        AND coalesce(r.repetition_penalty, 1) = 1 AND coalesce(r.presence_penalty, 0) = 0
        AND coalesce(r.frequency_penalty, 0) = 0
        AND (abs(e.${side}_value - e.${side}_processed) < 1e-3 OR isnan(e.${side}_value) AND isnan(e.${side}_processed))
)
SELECT
    place, request_id, output_index, position, draft_index, temperature, top_p, top_k, min_p, value, lowest, highest,
    $sign * (
        CASE
            WHEN other >= lowest - $tolerance AND other <= highest + $tolerance THEN other
            ELSE least(greatest(value, lowest), highest)
        END - value
    ) AS delta,
    d
FROM allowed
WHERE isnan(value) OR value > highest + $tolerance OR (value < lowest - $tolerance AND value <> '-inf')
    OR (value = '-inf' AND lowest = highest)
