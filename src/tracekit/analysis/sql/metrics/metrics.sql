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
