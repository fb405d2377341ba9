-- The map of partitions, as each database shard says it of itself: config/schema/README.md.
-- Rows are written by `onrush db migrate`, and changed by `onrush db split` alone.

CREATE TABLE IF NOT EXISTS map_version (
    one     TINYINT UNSIGNED NOT NULL PRIMARY KEY,
    version BIGINT UNSIGNED  NOT NULL,
    CONSTRAINT map_version_is_one_row CHECK (one = 1)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS holdings (
    `partition` TINYINT UNSIGNED NOT NULL PRIMARY KEY,
    state       TINYINT UNSIGNED NOT NULL,
    epoch       INT UNSIGNED     NOT NULL,
    peer        TINYINT UNSIGNED,
    CONSTRAINT holdings_state CHECK (state BETWEEN 1 AND 4)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- How far a copy has come that is under way to here: the last key of each table.
CREATE TABLE IF NOT EXISTS arrivals (
    name     VARCHAR(64)   NOT NULL PRIMARY KEY,
    done_key VARBINARY(16) NOT NULL,
    is_done  TINYINT UNSIGNED NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
