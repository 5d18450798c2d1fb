-- Each candidate's logit, and the token's own first, under penalties in full and in 16 bits; behind them the temperature.
WITH outputs AS (
    SELECT match_id, list(token_id ORDER BY output_index) AS ids FROM explained WHERE is_penalised GROUP BY match_id
),
candidates AS (
    SELECT
        e.place, e.request_id, e.output_index, e.position, e.d, e.temperature::DOUBLE AS temperature, e.is_penalised,
        coalesce(r.repetition_penalty, 1)::DOUBLE AS repetition, coalesce(r.presence_penalty, 0)::DOUBLE AS presence,
        coalesce(r.frequency_penalty, 0)::DOUBLE AS frequency, c.rest_size, c.rest_norm, c.rest_mean, c.logits[-1] AS last,
        CASE WHEN e.is_penalised THEN
            list_transform(
                list_zip(list_prepend(e.token_id, s.top_token_ids), list_prepend(c.logit, c.logits)),
                lambda p: {
                    'z': p[2],
                    'num': len(list_filter(o.ids[:e.output_index], lambda other: other = p[1])),
                    'is_prompt': list_contains(r.prompt_token_ids, p[1])
                }
            )
        ELSE list_transform(list_prepend(c.logit, c.logits), lambda z: {'z': z, 'num': 0, 'is_prompt': false}) END AS found
    FROM explained AS e
    JOIN _curves AS c ON e.place = c.place
    JOIN _a_side AS s ON e.place = s.place
    JOIN a.requests AS r ON e.a_run_id = r.run_id AND e.request_id = r.request_id
    LEFT JOIN outputs AS o ON e.match_id = o.match_id
    WHERE e.temperature <> 0 AND (e.temperature <> 1 OR e.is_penalised) AND e.a_kept_mass > 0
        AND r.logit_bias IS NULL AND r.allowed_token_ids IS NULL AND r.structured_output IS NULL
),
-- Step by step, as each step's result is rounded before the next one.
penalised AS (
    SELECT
        *,
        list_transform(found, lambda p:
            CASE WHEN p.num = 0 AND NOT p.is_prompt THEN p.z WHEN p.z > 0 THEN p.z / repetition ELSE p.z * repetition END
            - frequency * p.num - presence * (p.num > 0)::INTEGER) AS in_full,
        list_transform(found, lambda p: {
            'z': p.z, 'num': p.num, 'is_seen': p.num > 0 OR p.is_prompt, 'less': frequency_16 * p.num,
            'x': p.z * CASE WHEN p.z > 0 THEN inverse_16 ELSE repetition_16 END
        }) AS repeated
    FROM (
        SELECT
            *, rounded_to_bits(repetition, $bits) AS repetition_16,
            rounded_to_bits(1 / rounded_to_bits(repetition, $bits), $bits) AS inverse_16,
            rounded_to_bits(frequency, $bits) AS frequency_16, rounded_to_bits(presence, $bits) AS presence_16
        FROM candidates
    )
),
scaled AS (
    SELECT
        * EXCLUDE repeated,
        CASE WHEN is_penalised THEN
            list_transform(
                list_transform(
                    list_transform(repeated, lambda p: {
                        'z': p.z, 'num': p.num, 'is_seen': p.is_seen,
                        'x': rounded_to_bits(p.x, $bits) - rounded_to_bits(p.less, $bits)
                    }),
                    lambda p: {
                        'z': p.z, 'is_seen': p.is_seen,
                        'x': rounded_to_bits(p.x, $bits) - presence_16 * (p.num > 0)::INTEGER
                    }
                ),
                lambda p: CASE WHEN p.is_seen THEN rounded_to_bits(p.x, $bits) ELSE p.z END
            )
        ELSE in_full END AS in_16_bits
    FROM penalised
),
logprobs AS (
    SELECT
        place, request_id, output_index, position, temperature, d,
        in_full[1] / temperature - _norm_of(
            list_transform(in_full[2:], lambda z: z / temperature),
            _scaled_rest(1 / temperature - 1, rest_size, rest_norm, rest_mean, last)
        ) AS in_full,
        in_16_bits[1] / temperature_16 - _norm_of(
            list_transform(in_16_bits[2:], lambda z: z / temperature_16),
            _scaled_rest(1 / temperature_16 - 1, rest_size, rest_norm, rest_mean, last)
        ) AS in_16_bits
    FROM (SELECT *, rounded_to_bits(temperature, $bits) AS temperature_16 FROM scaled)
)
SELECT place, request_id, output_index, position, temperature, $sign * (in_16_bits - in_full) AS delta, d
FROM logprobs
WHERE d IS NOT NULL AND isfinite(in_16_bits - in_full) AND in_16_bits <> in_full
