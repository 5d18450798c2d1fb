-- rho - 1 - d loses all digits to cancellation near 0, and there is no expm1: below 0.1 a series whose first
-- neglected term is under 1e-16 of the sum.
CREATE MACRO k3(d) AS CASE
    WHEN abs(d) < 0.1 THEN d * d * (1 / 2::DOUBLE + d * (1 / 6::DOUBLE + d * (1 / 24::DOUBLE + d * (1 / 120::DOUBLE
        + d * (1 / 720::DOUBLE + d * (1 / 5040::DOUBLE + d * (1 / 40320::DOUBLE + d * (1 / 362880::DOUBLE
        + d * (1 / 3628800::DOUBLE + d / 39916800::DOUBLE)))))))))
    WHEN d > 709 AND NOT isnan(d) THEN 'inf'::DOUBLE
    ELSE exp(d) - 1 - d
END;
-- Example: SELECT avg(k3(d_processed)) FROM pairs
COMMENT ON MACRO k3 IS 'exp(d) - 1 - d for a log ratio d (nat), accurate for small d too. Its mean estimates KL(A, B) where A sampled the tokens (Schulman, Approximating KL divergence).';

-- inf - inf has no value: both sides exclude the token. NaN from a NaN operand stays, so that it is seen.
CREATE MACRO _difference(b, a) AS CASE
    WHEN isinf(a::DOUBLE) AND a::DOUBLE = b::DOUBLE THEN NULL
    ELSE b::DOUBLE - a::DOUBLE
END;

-- Importance weights are summed in steps of e^256, so that neither they nor their squares leave the range of DOUBLE.
CREATE MACRO _scale(d) AS CASE WHEN isfinite(d) THEN round(d / 256) * 256 END;
CREATE MACRO _scaled_weight(d) AS CASE WHEN isfinite(d) THEN exp(d - _scale(d)) ELSE exp(d) END;
CREATE MACRO _out_of_bounds(d) AS d < ln(0.8::DOUBLE) OR d > ln(1.2::DOUBLE);
