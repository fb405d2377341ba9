-- Which journal owns which slot, for good; claimed before a node of several first uses it. The
-- primary key is what lets no slot have two owners.

CREATE TABLE IF NOT EXISTS slot_claims (
    slot        SMALLINT UNSIGNED NOT NULL PRIMARY KEY,
    journal     BIGINT UNSIGNED   NOT NULL,
    node        VARCHAR(64)       NOT NULL,
    map_version BIGINT UNSIGNED   NOT NULL,
    claimed_at  BIGINT UNSIGNED   NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
