-- Which journal owns which slot, for good; claimed before a node of several first uses it.

CREATE TABLE slot_claims (
    slot        INTEGER PRIMARY KEY CHECK (slot BETWEEN 0 AND 4095),
    journal     INTEGER NOT NULL,
    node        TEXT    NOT NULL,
    map_version INTEGER NOT NULL,
    claimed_at  INTEGER NOT NULL
) STRICT;
