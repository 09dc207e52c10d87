-- An auditor recomputes the hash of a row from JSON, and JSON readers round: 0.1 or 2^60 may come back as another
-- number, and an honest row would look edited. Numbers in `detail` are integers that every reader keeps; anything
-- else is written as a string.
alter table audit_log add constraint audit_log_detail_numbers check (not jsonb_path_exists(detail,
    '$.** ? (@.type() == "number" && (@ != @.floor() || @ > 9007199254740991 || @ < -9007199254740991))'));
