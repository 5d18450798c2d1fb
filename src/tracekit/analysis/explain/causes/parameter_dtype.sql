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
scaled AS (
    SELECT
        *,
        list_transform(found, lambda p:
            CASE WHEN p.num = 0 AND NOT p.is_prompt THEN p.z WHEN p.z > 0 THEN p.z / repetition ELSE p.z * repetition END
            - frequency * p.num - presence * (p.num > 0)::INTEGER) AS in_full,
        list_transform(found, lambda p: CASE WHEN p.num = 0 AND NOT p.is_prompt THEN p.z ELSE rounded_to_bits(
            rounded_to_bits(
                rounded_to_bits(
                    p.z * CASE WHEN p.z > 0 THEN rounded_to_bits(1 / rounded_to_bits(repetition, $bits), $bits)
                        ELSE rounded_to_bits(repetition, $bits) END,
                    $bits
                ) - rounded_to_bits(rounded_to_bits(frequency, $bits) * p.num, $bits),
                $bits
            ) - rounded_to_bits(presence, $bits) * (p.num > 0)::INTEGER,
            $bits
        ) END) AS in_16_bits
    FROM candidates
),
logprobs AS (
    SELECT
        place, request_id, output_index, position, temperature, d,
        in_full[1] / temperature - _norm_of(
            list_transform(in_full[2:], lambda z: z / temperature),
            _scaled_rest(1 / temperature - 1, rest_size, rest_norm, rest_mean, last)
        ) AS in_full,
        in_16_bits[1] / rounded_to_bits(temperature, $bits) - _norm_of(
            list_transform(in_16_bits[2:], lambda z: z / rounded_to_bits(temperature, $bits)),
            _scaled_rest(1 / rounded_to_bits(temperature, $bits) - 1, rest_size, rest_norm, rest_mean, last)
        ) AS in_16_bits
    FROM scaled
)
SELECT place, request_id, output_index, position, temperature, $sign * (in_16_bits - in_full) AS delta, d
FROM logprobs
WHERE d IS NOT NULL AND isfinite(in_16_bits - in_full) AND in_16_bits <> in_full
