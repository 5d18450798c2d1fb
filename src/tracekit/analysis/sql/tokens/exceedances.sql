-- How many tokens differ by more than a threshold: means of heavy tails say little without it.
CREATE VIEW exceedances AS
WITH counted AS MATERIALIZED (
    SELECT
        count(abs_d) AS num_tokens,
        count_if(abs_d > 0) AS over_0,
        count_if(abs_d > 0.001) AS over_0_001,
        count_if(abs_d > 0.01) AS over_0_01,
        count_if(abs_d > 0.1) AS over_0_1,
        count_if(abs_d > 1) AS over_1,
        count_if(abs_d > 2) AS over_2,
        count_if(abs_d > 10) AS over_10,
        count_if(abs_d = 'inf'::DOUBLE) AS infinite
    FROM (SELECT abs(d) AS abs_d FROM _pairs)
)
SELECT
    threshold,
    num_tokens,
    CASE threshold
        WHEN 0 THEN over_0 WHEN 0.001 THEN over_0_001 WHEN 0.01 THEN over_0_01 WHEN 0.1 THEN over_0_1 WHEN 1 THEN over_1
        WHEN 2 THEN over_2 WHEN 10 THEN over_10 ELSE infinite
    END::BIGINT AS num_over,
    CASE WHEN num_tokens > 0 THEN num_over / num_tokens END AS share
FROM counted, (VALUES (0::DOUBLE), (0.001), (0.01), (0.1), (1), (2), (10), ('inf'::DOUBLE)) AS t (threshold)
ORDER BY threshold;
COMMENT ON VIEW exceedances IS 'How many pairs have an abs(d) over a threshold. One row a threshold.';
COMMENT ON COLUMN exceedances.threshold IS 'In nat. 0 counts every token that is not bit-equal; inf counts tokens that one side excludes.';
COMMENT ON COLUMN exceedances.num_tokens IS 'Pairs with a known d.';
COMMENT ON COLUMN exceedances.num_over IS 'Those of them with abs(d) > threshold; at inf, with infinite d.';
COMMENT ON COLUMN exceedances.share IS 'num_over / num_tokens; null without tokens.';
