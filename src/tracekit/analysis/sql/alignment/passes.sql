-- In a trainer's trace each pass (policy, step, weights) over the requests is a run of its own. Of the passes over one
-- request one is compared: the nearest to the rollout, so 'old' before 'current', and the first step; of a step that
-- was done again, the last time. The variables policy and trainer_step choose another.
CREATE VIEW _find_passes AS
SELECT
    run_id, source_run_id, policy, trainer_step, distribution,
    row_number() OVER (
        ORDER BY CASE policy WHEN 'old' THEN 0 WHEN 'current' THEN 1 ELSE 2 END, trainer_step, started_ns DESC, run_id
    ) AS place,
    coalesce(policy = getvariable('policy')::VARCHAR, true)
        AND coalesce(trainer_step = getvariable('trainer_step')::BIGINT, true) AS chosen
FROM (
    SELECT
        run_id, started_ns, json_extract_string(options, '$.source_run_id') AS source_run_id,
        json_extract_string(options, '$.policy') AS policy,
        json_extract_string(options, '$.distribution') AS distribution,
        json_extract_string(options, '$.trainer_step')::BIGINT AS trainer_step
    FROM runs
    WHERE role = 'trainer'
)
WHERE policy IS NOT NULL;
