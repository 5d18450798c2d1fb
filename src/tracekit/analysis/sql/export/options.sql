SET VARIABLE _raised = (
    SELECT error(format('no alignment ''{}''; set the variable align to one of {}', getvariable('align'), [$methods]))
    WHERE getvariable('align') IS NOT NULL AND NOT list_contains([$methods], getvariable('align'))
);
