-- How far each metric may be off: resampled requests, or groups of them.
CREATE MACRO _intervals_by(by_, whole_, num_replicates, num_blocks) AS TABLE
WITH figures AS MATERIALIZED (FROM _figures(by_, whole_, num_replicates, num_blocks)),
spread AS (
    SELECT grp, basis, name, quantile_cont(value, [0.025, 0.975]) AS bounds, skewness(value) AS skew
    FROM figures WHERE replicate > 0 AND num_tokens > 0 AND isfinite(value)
    GROUP BY grp, basis, name
)
SELECT
    f.grp AS "group", f.basis, f.name, CASE WHEN f.num_tokens > 0 THEN f.value END AS value,
    CASE WHEN m.has_interval AND f.num_clusters > 1 AND isfinite(f.value) THEN s.bounds[1] END AS low,
    CASE WHEN m.has_interval AND f.num_clusters > 1 AND isfinite(f.value) THEN s.bounds[2] END AS high,
    CASE WHEN m.has_interval THEN f.num_clusters >= _fewest_clusters() AND coalesce(isfinite(f.value), false)
        AND coalesce(abs(s.skew) < _largest_skew(), true) END AS reliable,
    f.num_tokens, f.num_sequences, f.num_clusters, CASE WHEN f.num_tokens > 0 THEN f.largest END AS largest, f.descriptive
FROM figures AS f
JOIN metric_definitions AS m USING (name)
LEFT JOIN spread AS s ON f.grp IS NOT DISTINCT FROM s.grp AND f.basis = s.basis AND f.name = s.name
WHERE f.replicate = 0 AND list_contains(m.bases, f.basis)
ORDER BY "group", f.basis = 'processed', m.place;
CREATE MACRO metric_intervals_by(by_, num_replicates := 400, num_blocks := 256) AS TABLE
FROM _intervals_by(by_, false, num_replicates, num_blocks);
COMMENT ON MACRO TABLE metric_intervals_by IS 'The metrics for each value of an expression over the columns of pairs, with intervals as in metric_intervals: FROM metric_intervals_by(a_weight_version).';

CREATE VIEW metric_intervals AS
SELECT d.basis, d.name, f.value, f.low, f.high, f.reliable, coalesce(f.num_tokens, 0) AS num_tokens,
    coalesce(f.num_sequences, 0) AS num_sequences, coalesce(f.num_clusters, 0) AS num_clusters, f.largest,
    coalesce(f.descriptive, d.basis = 'raw') AS descriptive
FROM (SELECT unnest(bases) AS basis, name, place FROM metric_definitions) AS d
LEFT JOIN _intervals_by(NULL, true, 1000, 1024) AS f ON d.basis = f.basis AND d.name = f.name
ORDER BY d.basis = 'processed', d.place;
COMMENT ON VIEW metric_intervals IS 'The metrics with 95% intervals from resampling whole requests (whole groups, where group ids or samples of one request are known): a Poisson bootstrap. One row a basis and metric.';
COMMENT ON COLUMN metric_intervals.basis IS 'As in metrics.';
COMMENT ON COLUMN metric_intervals.name IS 'As in metrics.';
COMMENT ON COLUMN metric_intervals.value IS 'As in metrics.';
COMMENT ON COLUMN metric_intervals.low IS 'Lower end of the interval: the 2.5% quantile over replicates. Null for maxima, for infinite figures, and for a single request.';
COMMENT ON COLUMN metric_intervals.high IS 'Upper end: the 97.5% quantile.';
COMMENT ON COLUMN metric_intervals.reliable IS 'Whether such intervals cover what they claim: there are enough requests, and the figure is not carried by a tail (the replicates are not skewed). See docs/metrics.md for simulated coverages.';
COMMENT ON COLUMN metric_intervals.num_tokens IS 'As in metrics.';
COMMENT ON COLUMN metric_intervals.num_sequences IS 'As in metrics.';
COMMENT ON COLUMN metric_intervals.num_clusters IS 'How many independent units were resampled: groups, or requests.';
COMMENT ON COLUMN metric_intervals.largest IS 'As in metrics.';
COMMENT ON COLUMN metric_intervals.descriptive IS 'As in metrics.';
