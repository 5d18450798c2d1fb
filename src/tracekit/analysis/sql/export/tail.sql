-- What stands against a comparison. Until there is nothing, there are no pairs.
SET VARIABLE _raised = (
    SELECT error(getvariable('a') || ' and ' || getvariable('b') || ' do not align: ' || message)
    FROM _objections ORDER BY place LIMIT 1
);
