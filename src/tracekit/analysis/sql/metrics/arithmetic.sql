-- Functions of a log ratio that lose all digits to cancellation near 0 when written down as they are defined.
CREATE MACRO _expm1(x) AS CASE WHEN abs(x) < 0.1 THEN x + k3(x) ELSE exp(x) - 1 END;
CREATE MACRO _reversed_k3(d) AS CASE WHEN d = '-inf'::DOUBLE THEN 1 ELSE exp(d) * k3(-d) END;
-- ln cosh(d / 2) = ln(1 + y) / 2 with y = (cosh(d) - 1) / 2, and ln(1 + y) = 2 atanh(y / (2 + y)).
CREATE MACRO _half_ln_cosh(d, k3, k3r) AS CASE
    WHEN abs(d) > 40 THEN abs(d) / 2 - ln(2::DOUBLE)
    ELSE atanh((k3 + k3r) / (8 + k3 + k3r))
END;

-- Pearson correlation of x and x + d from their sums: of two nearly equal columns, what counts is their difference.
CREATE MACRO _correlation_of(vx, vd, cxd) AS CASE
    WHEN vx > 0 AND vx + 2 * cxd + vd > 0 AND isfinite(vd) THEN (vx + cxd) / sqrt(vx * (vx + 2 * cxd + vd))
END;
CREATE MACRO _correlation(num, x, d, xx, dd, xd) AS _correlation_of(xx - x * x / num, dd - d * d / num, xd - x * d / num);

CREATE MACRO _poisson(uniform) AS CASE
    WHEN uniform < 0.36787944117144233 THEN 0
    WHEN uniform < 0.73575888234288467 THEN 1
    WHEN uniform < 0.91969860292860584 THEN 2
    WHEN uniform < 0.98101184312384624 THEN 3
    WHEN uniform < 0.99634015317265634 THEN 4
    WHEN uniform < 0.99940581518241836 THEN 5
    WHEN uniform < 0.99991675885071193 THEN 6
    WHEN uniform < 0.99998975080136396 THEN 7
    ELSE 8
END;

-- How often the Poisson bootstrap takes a block: the inverse of the distribution at a uniform number. That is made of
-- the block and the replicate, so that parts of a trace that are summed apart draw the same, and a figure stays itself.
CREATE MACRO _copies(block, replicate) AS CASE
    WHEN replicate = 0 THEN 1
    ELSE _poisson(hash(block * 4294967296 + replicate) / 18446744073709551616)
END;

-- Below so many clusters, and above such a skewness of the replicates, intervals cover less than they claim.
CREATE MACRO _fewest_clusters() AS 200;
CREATE MACRO _largest_skew() AS 0.2;
