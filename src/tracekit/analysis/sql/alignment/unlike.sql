-- Requests whose sides are not alike: only their tokens are compared one by one.
CREATE VIEW _unlike AS
SELECT match_id FROM _matches WHERE NOT alike;
