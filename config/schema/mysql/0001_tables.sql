-- Tables of one database shard on MySQL or MariaDB. What each column means:
-- config/schema/README.md. Times are milliseconds of node time.
--
-- Each statement ends with a semicolon at the end of a line, and may be run again: statements that
-- change a schema cannot be rolled back, so an interrupted migration is run once more.

CREATE TABLE IF NOT EXISTS identity (
    one         TINYINT UNSIGNED NOT NULL PRIMARY KEY,
    shard       TINYINT UNSIGNED NOT NULL,
    shard_count TINYINT UNSIGNED NOT NULL,
    CONSTRAINT identity_is_one_row CHECK (one = 1)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS watermarks (
    journal     BIGINT UNSIGNED  NOT NULL,
    `partition` TINYINT UNSIGNED NOT NULL,
    incarnation INT UNSIGNED     NOT NULL,
    since_seq   BIGINT UNSIGNED  NOT NULL,
    seq         BIGINT UNSIGNED  NOT NULL,
    at          BIGINT UNSIGNED  NOT NULL,
    PRIMARY KEY (journal, `partition`)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Monthly partitions are made ahead, in front of p_future; no row is ever without a partition.
CREATE TABLE IF NOT EXISTS redemptions (
    id         BINARY(16)       NOT NULL,
    member     BIGINT UNSIGNED  NOT NULL,
    journal    BIGINT UNSIGNED  NOT NULL,
    item       INT UNSIGNED     NOT NULL,
    quantity   INT UNSIGNED     NOT NULL,
    points     BIGINT           NOT NULL,
    state      TINYINT UNSIGNED NOT NULL,
    `key`      BINARY(16)       NOT NULL,
    created_at BIGINT UNSIGNED  NOT NULL,
    expires_at BIGINT UNSIGNED  NOT NULL,
    updated_at BIGINT UNSIGNED  NOT NULL,
    units_back TINYINT UNSIGNED NOT NULL,
    seq        BIGINT UNSIGNED  NOT NULL,
    PRIMARY KEY (id),
    KEY redemptions_by_member (member, id),
    KEY redemptions_by_item (journal, item, id),
    CONSTRAINT redemptions_state CHECK (state BETWEEN 1 AND 5)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin
PARTITION BY RANGE COLUMNS (id) (PARTITION p_future VALUES LESS THAN (MAXVALUE));

-- The id is made of the entry's time, journal, record and leg: it is unique, and sorts by time.
CREATE TABLE IF NOT EXISTS ledger (
    id         BINARY(16)       NOT NULL,
    journal    BIGINT UNSIGNED  NOT NULL,
    seq        BIGINT UNSIGNED  NOT NULL,
    leg        TINYINT UNSIGNED NOT NULL,
    account    TINYINT UNSIGNED NOT NULL,
    member     BIGINT UNSIGNED  NOT NULL,
    amount     BIGINT           NOT NULL,
    kind       TINYINT UNSIGNED NOT NULL,
    redemption BINARY(16),
    at         BIGINT UNSIGNED  NOT NULL,
    PRIMARY KEY (id),
    KEY ledger_by_member (member, id),
    CONSTRAINT ledger_account CHECK (account BETWEEN 1 AND 4),
    CONSTRAINT ledger_kind CHECK (kind BETWEEN 1 AND 8)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin
PARTITION BY RANGE COLUMNS (id) (PARTITION p_future VALUES LESS THAN (MAXVALUE));

CREATE TABLE IF NOT EXISTS accounts (
    member   BIGINT UNSIGNED NOT NULL PRIMARY KEY,
    free     BIGINT          NOT NULL,
    held     BIGINT          NOT NULL,
    journal  BIGINT UNSIGNED NOT NULL,
    last_seq BIGINT UNSIGNED NOT NULL,
    CONSTRAINT accounts_free CHECK (free >= 0),
    CONSTRAINT accounts_held CHECK (held >= 0)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS stock (
    journal   BIGINT UNSIGNED NOT NULL,
    item      INT UNSIGNED    NOT NULL,
    held      BIGINT          NOT NULL DEFAULT 0,
    confirmed BIGINT          NOT NULL DEFAULT 0,
    released  BIGINT          NOT NULL DEFAULT 0,
    reversed  BIGINT          NOT NULL DEFAULT 0,
    retired   BIGINT          NOT NULL DEFAULT 0,
    total     BIGINT          NOT NULL DEFAULT 0,
    granted   BIGINT          NOT NULL DEFAULT 0,
    returned  BIGINT          NOT NULL DEFAULT 0,
    PRIMARY KEY (journal, item),
    CONSTRAINT stock_held CHECK (held >= 0),
    CONSTRAINT stock_confirmed CHECK (confirmed >= 0)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS sales (
    journal    BIGINT UNSIGNED NOT NULL,
    sale       INT UNSIGNED    NOT NULL,
    id         VARCHAR(255)    NOT NULL,
    name       VARCHAR(255)    NOT NULL,
    state      VARCHAR(16)     NOT NULL,
    defined_at BIGINT UNSIGNED NOT NULL,
    changed_at BIGINT UNSIGNED NOT NULL,
    definition MEDIUMTEXT      NOT NULL,
    PRIMARY KEY (journal, sale),
    CONSTRAINT sales_state CHECK (state IN ('defined', 'open', 'paused', 'ended'))
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS items (
    journal          BIGINT UNSIGNED NOT NULL,
    item             INT UNSIGNED    NOT NULL,
    sale             INT UNSIGNED    NOT NULL,
    sku              VARCHAR(255)    NOT NULL,
    name             VARCHAR(255)    NOT NULL,
    points           BIGINT          NOT NULL,
    limit_per_member BIGINT          NOT NULL,
    PRIMARY KEY (journal, item)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS admin_changes (
    journal    BIGINT UNSIGNED NOT NULL,
    seq        BIGINT UNSIGNED NOT NULL,
    at         BIGINT UNSIGNED NOT NULL,
    what       VARCHAR(32)     NOT NULL,
    operator   VARCHAR(255)    NOT NULL,
    reason     VARCHAR(255)    NOT NULL,
    reference  VARCHAR(255)    NOT NULL,
    member     BIGINT UNSIGNED,
    redemption BINARY(16),
    sale       INT UNSIGNED,
    item       INT UNSIGNED,
    amount     BIGINT,
    PRIMARY KEY (journal, seq)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS slots (
    journal  BIGINT UNSIGNED   NOT NULL,
    slot     SMALLINT UNSIGNED NOT NULL,
    records  BIGINT UNSIGNED   NOT NULL,
    checksum BIGINT UNSIGNED   NOT NULL,
    PRIMARY KEY (journal, slot)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS dead_letters (
    id          BIGINT            NOT NULL AUTO_INCREMENT PRIMARY KEY,
    journal     BIGINT UNSIGNED   NOT NULL,
    `partition` TINYINT UNSIGNED  NOT NULL,
    incarnation INT UNSIGNED      NOT NULL,
    seq         BIGINT UNSIGNED   NOT NULL,
    slot        SMALLINT UNSIGNED NOT NULL,
    member      BIGINT UNSIGNED,
    at          BIGINT UNSIGNED   NOT NULL,
    state       TINYINT UNSIGNED  NOT NULL,
    tries       INT UNSIGNED      NOT NULL,
    reason      TEXT              NOT NULL,
    record      MEDIUMBLOB        NOT NULL,
    UNIQUE KEY dead_letters_by_record (journal, seq),
    CONSTRAINT dead_letters_state CHECK (state BETWEEN 1 AND 3)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS rewinds (
    id          BIGINT           NOT NULL AUTO_INCREMENT PRIMARY KEY,
    journal     BIGINT UNSIGNED  NOT NULL,
    `partition` TINYINT UNSIGNED NOT NULL,
    to_seq      BIGINT UNSIGNED  NOT NULL,
    reason      VARCHAR(255)     NOT NULL,
    is_done     TINYINT UNSIGNED NOT NULL DEFAULT 0
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Where the log is read on from, where it is a Kafka topic; moves with the watermarks.
CREATE TABLE IF NOT EXISTS log_offsets (
    topic       VARCHAR(249)     NOT NULL,
    `partition` TINYINT UNSIGNED NOT NULL,
    next_offset BIGINT           NOT NULL,
    PRIMARY KEY (topic, `partition`)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- The same, for people.
CREATE OR REPLACE VIEW redemption_list AS
SELECT LOWER(CONCAT(SUBSTR(HEX(r.id), 1, 8), '-', SUBSTR(HEX(r.id), 9, 4), '-',
             SUBSTR(HEX(r.id), 13, 4), '-', SUBSTR(HEX(r.id), 17, 4), '-',
             SUBSTR(HEX(r.id), 21))) AS redemption,
       r.member AS member,
       s.id AS sale,
       i.sku AS sku,
       i.name AS item,
       r.quantity AS quantity,
       r.points AS points,
       ELT(r.state, 'held', 'confirmed', 'cancelled', 'expired', 'reversed') AS state,
       CAST(TIMESTAMPADD(MICROSECOND, r.created_at * 1000, TIMESTAMP'1970-01-01 00:00:00')
            AS DATETIME(3)) AS created,
       CAST(TIMESTAMPADD(MICROSECOND, r.updated_at * 1000, TIMESTAMP'1970-01-01 00:00:00')
            AS DATETIME(3)) AS updated,
       r.id AS id
FROM redemptions r
LEFT JOIN items i ON i.journal = r.journal AND i.item = r.item
LEFT JOIN sales s ON s.journal = i.journal AND s.sale = i.sale;

CREATE OR REPLACE VIEW ledger_list AS
SELECT CAST(TIMESTAMPADD(MICROSECOND, at * 1000, TIMESTAMP'1970-01-01 00:00:00')
            AS DATETIME(3)) AS time,
       member,
       ELT(account, 'free', 'held', 'issued', 'redeemed') AS account,
       amount,
       ELT(kind, 'opened', 'credited', 'debited', 'held', 'redeemed', 'confirmed', 'released',
           'reversed') AS kind,
       redemption, journal, seq, leg, id
FROM ledger;

CREATE OR REPLACE VIEW stock_list AS
SELECT s.id AS sale, i.sku AS sku, i.name AS item, t.held, t.confirmed, t.released, t.reversed,
       t.retired, t.total, t.granted, t.returned
FROM stock t
LEFT JOIN items i ON i.journal = t.journal AND i.item = t.item
LEFT JOIN sales s ON s.journal = i.journal AND s.sale = i.sale;
