-- From the sums of requests to the field's metrics. Put together from the catalogue.
CREATE VIEW metric_definitions AS
SELECT name, unit, meaning, source, bases, place, has_interval, headline, neutral
FROM (VALUES
$definitions
) AS definitions (place, name, unit, meaning, source, bases, has_interval, headline, neutral)
ORDER BY place;
COMMENT ON VIEW metric_definitions IS 'Every metric: what it is, and who computes it under which name. d = logprob B - logprob A of a token that A sampled, rho = exp(d). One row a metric.';
COMMENT ON COLUMN metric_definitions.name IS 'Its name.';
COMMENT ON COLUMN metric_definitions.unit IS 'nat, ratio, share, probability or correlation.';
COMMENT ON COLUMN metric_definitions.meaning IS 'Its definition.';
COMMENT ON COLUMN metric_definitions.source IS 'Who computes it, and its name there.';
COMMENT ON COLUMN metric_definitions.bases IS 'The bases on which it is computed: raw, processed, or both.';
COMMENT ON COLUMN metric_definitions.place IS 'Its place in lists.';
COMMENT ON COLUMN metric_definitions.has_interval IS 'Whether resampling says something about it; maxima have no interval.';
COMMENT ON COLUMN metric_definitions.headline IS 'Whether `tracekit diff` shows it without --all.';
COMMENT ON COLUMN metric_definitions.neutral IS 'Its value for two equal traces; null where there is no such value.';

-- Totals of a Poisson bootstrap over clusters: replicate 0 takes each once, and so gives the figures themselves. Many
-- clusters are first thrown together into blocks at random, which leaves the spread of their means as it is.
CREATE MACRO _totals(by_, whole_, num_replicates, num_blocks) AS TABLE
WITH blocks AS MATERIALIZED (
    SELECT
        basis, grp, hash(cluster) % num_blocks AS block, bool_or(descriptive) AS descriptive,
        count(DISTINCT cluster) FILTER (num > 0) AS num_clusters, sum(num_sequences) AS num_sequences,
        $over_requests
    FROM _request_sums(by_, whole_)
    GROUP BY basis, grp, block
)
SELECT
    basis, grp, replicate, bool_or(descriptive) AS descriptive, sum(copies * num_clusters) AS num_clusters,
    sum(copies * num_sequences) AS num_sequences,
    $over_blocks
FROM (
    SELECT *, _copies(block, replicate) AS copies
    FROM blocks, range(num_replicates + 1) AS replicates (replicate)
)
WHERE copies > 0
GROUP BY basis, grp, replicate;

CREATE MACRO _figures(by_, whole_, num_replicates, num_blocks) AS TABLE
SELECT basis, grp, replicate, descriptive, num_sequences::BIGINT AS num_sequences, num_clusters::BIGINT AS num_clusters, unnest([
$values
], recursive := true)
FROM _totals(by_, whole_, num_replicates, num_blocks);

CREATE MACRO _metrics_by(by_, whole_) AS TABLE
SELECT grp AS "group", basis, name, CASE WHEN num_tokens > 0 THEN value END AS value, num_tokens, num_sequences,
    CASE WHEN num_tokens > 0 THEN largest END AS largest, descriptive
FROM _figures(by_, whole_, 0, 1)
JOIN metric_definitions USING (name)
WHERE list_contains(bases, basis)
ORDER BY "group", basis = 'processed', place;
CREATE MACRO metrics_by(by_) AS TABLE FROM _metrics_by(by_, false);
COMMENT ON MACRO TABLE metrics_by IS 'The metrics for each value of an expression over the columns of pairs: FROM metrics_by(a_weight_version). Columns as in metrics; a sequence is what lies of a request in the group.';

CREATE VIEW metrics AS
SELECT d.basis, d.name, f.value, coalesce(f.num_tokens, 0) AS num_tokens, coalesce(f.num_sequences, 0) AS num_sequences,
    f.largest, coalesce(f.descriptive, d.basis = 'raw') AS descriptive
FROM (SELECT unnest(bases) AS basis, name, place FROM metric_definitions) AS d
LEFT JOIN _metrics_by(NULL, true) AS f ON d.basis = f.basis AND d.name = f.name
ORDER BY d.basis = 'processed', d.place;
COMMENT ON VIEW metrics IS 'The field''s metrics of A against B; metric_definitions says what each is. One row a basis and metric.';
COMMENT ON COLUMN metrics.basis IS 'raw: d of raw logprobs over all pairs. processed: d_processed over tokens that A sampled at temperature above 0 and that no loss mask leaves out; where all of these were forced in A (A is a replay), over the forced ones.';
COMMENT ON COLUMN metrics.name IS 'Name of the metric, as the field uses it.';
COMMENT ON COLUMN metrics.value IS 'The figure. Infinities are shown. Null where there is no token.';
COMMENT ON COLUMN metrics.num_tokens IS 'How many tokens it was computed from.';
COMMENT ON COLUMN metrics.num_sequences IS 'How many requests these tokens are from.';
COMMENT ON COLUMN metrics.largest IS 'Of a mean: its largest single term. Null for other figures.';
COMMENT ON COLUMN metrics.descriptive IS 'True where the figure describes the data but does not estimate what its name says: the raw basis, and tokens that A did not sample itself.';

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
