-- Has a row where neither side has columns that only trainers write.
CREATE VIEW _untrained AS
SELECT true AS held
WHERE NOT EXISTS (FROM a.tokens_all WHERE advantage IS NOT NULL OR loss_mask IS NOT NULL)
    AND NOT EXISTS (FROM b.tokens_all WHERE advantage IS NOT NULL OR loss_mask IS NOT NULL);
