-- Tables of one database shard. What each column means: config/schema/README.md.
-- Ids that are 64-bit unsigned (journal, member, checksum) are stored by their bits: from 2^63 on
-- they show negative. Times are milliseconds of node time.

CREATE TABLE identity (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    shard       INTEGER NOT NULL,
    shard_count INTEGER NOT NULL
) STRICT;

CREATE TABLE watermarks (
    journal     INTEGER NOT NULL,
    partition   INTEGER NOT NULL,
    incarnation INTEGER NOT NULL,
    since_seq   INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    PRIMARY KEY (journal, partition)
) STRICT, WITHOUT ROWID;

CREATE TABLE redemptions (
    id         BLOB    NOT NULL PRIMARY KEY,
    member     INTEGER NOT NULL,
    journal    INTEGER NOT NULL,
    item       INTEGER NOT NULL,
    quantity   INTEGER NOT NULL,
    points     INTEGER NOT NULL,
    state      INTEGER NOT NULL CHECK (state BETWEEN 1 AND 5),
    key        BLOB    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    units_back INTEGER NOT NULL,
    seq        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX redemptions_by_member ON redemptions (member, id);
CREATE INDEX redemptions_by_item ON redemptions (journal, item, id);

CREATE TABLE ledger (
    journal    INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    leg        INTEGER NOT NULL,
    account    INTEGER NOT NULL CHECK (account BETWEEN 1 AND 4),
    member     INTEGER NOT NULL,
    amount     INTEGER NOT NULL,
    kind       INTEGER NOT NULL CHECK (kind BETWEEN 1 AND 8),
    redemption BLOB,
    at         INTEGER NOT NULL,
    PRIMARY KEY (journal, seq, leg)
) STRICT, WITHOUT ROWID;
-- A member's statement: the member's own accounts, free and held.
CREATE INDEX ledger_by_member ON ledger (member, at) WHERE account <= 2;
CREATE TRIGGER ledger_is_never_changed BEFORE UPDATE ON ledger
BEGIN SELECT RAISE(ABORT, 'ledger rows are never changed: post new ones'); END;
CREATE TRIGGER ledger_is_never_deleted BEFORE DELETE ON ledger
BEGIN SELECT RAISE(ABORT, 'ledger rows are never deleted: post new ones'); END;

CREATE TABLE accounts (
    member   INTEGER PRIMARY KEY,
    free     INTEGER NOT NULL CHECK (free >= 0),
    held     INTEGER NOT NULL CHECK (held >= 0),
    journal  INTEGER NOT NULL,
    last_seq INTEGER NOT NULL
) STRICT;

CREATE TABLE stock (
    journal   INTEGER NOT NULL,
    item      INTEGER NOT NULL,
    held      INTEGER NOT NULL DEFAULT 0 CHECK (held >= 0),
    confirmed INTEGER NOT NULL DEFAULT 0 CHECK (confirmed >= 0),
    released  INTEGER NOT NULL DEFAULT 0,
    reversed  INTEGER NOT NULL DEFAULT 0,
    retired   INTEGER NOT NULL DEFAULT 0,
    total     INTEGER NOT NULL DEFAULT 0,
    granted   INTEGER NOT NULL DEFAULT 0,
    returned  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (journal, item)
) STRICT, WITHOUT ROWID;

CREATE TABLE sales (
    journal    INTEGER NOT NULL,
    sale       INTEGER NOT NULL,
    id         TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('defined', 'open', 'paused', 'ended')),
    defined_at INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    definition TEXT    NOT NULL,
    PRIMARY KEY (journal, sale)
) STRICT, WITHOUT ROWID;

CREATE TABLE items (
    journal          INTEGER NOT NULL,
    item             INTEGER NOT NULL,
    sale             INTEGER NOT NULL,
    sku              TEXT    NOT NULL,
    name             TEXT    NOT NULL,
    points           INTEGER NOT NULL,
    limit_per_member INTEGER NOT NULL,
    PRIMARY KEY (journal, item)
) STRICT, WITHOUT ROWID;

CREATE TABLE admin_changes (
    journal    INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    what       TEXT    NOT NULL,
    operator   TEXT    NOT NULL,
    reason     TEXT    NOT NULL,
    reference  TEXT    NOT NULL,
    member     INTEGER,
    redemption BLOB,
    sale       INTEGER,
    item       INTEGER,
    amount     INTEGER,
    PRIMARY KEY (journal, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE slots (
    journal  INTEGER NOT NULL,
    slot     INTEGER NOT NULL,
    records  INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (journal, slot)
) STRICT, WITHOUT ROWID;

CREATE TABLE dead_letters (
    id          INTEGER PRIMARY KEY,
    journal     INTEGER NOT NULL,
    partition   INTEGER NOT NULL,
    incarnation INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    slot        INTEGER NOT NULL,
    member      INTEGER,
    at          INTEGER NOT NULL,
    state       INTEGER NOT NULL CHECK (state BETWEEN 1 AND 3),
    tries       INTEGER NOT NULL,
    reason      TEXT    NOT NULL,
    record      BLOB    NOT NULL,
    UNIQUE (journal, seq)
) STRICT;

CREATE TABLE rewinds (
    id        INTEGER PRIMARY KEY,
    journal   INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    to_seq    INTEGER NOT NULL,
    reason    TEXT    NOT NULL,
    is_done   INTEGER NOT NULL DEFAULT 0
) STRICT;

-- The same, for people.
CREATE VIEW redemption_list AS
SELECT lower(substr(hex(r.id), 1, 8) || '-' || substr(hex(r.id), 9, 4) || '-'
          || substr(hex(r.id), 13, 4) || '-' || substr(hex(r.id), 17, 4) || '-'
          || substr(hex(r.id), 21)) AS redemption,
       r.member AS member,
       s.id AS sale,
       i.sku AS sku,
       i.name AS item,
       r.quantity AS quantity,
       r.points AS points,
       CASE r.state WHEN 1 THEN 'held' WHEN 2 THEN 'confirmed' WHEN 3 THEN 'cancelled'
                    WHEN 4 THEN 'expired' WHEN 5 THEN 'reversed' END AS state,
       strftime('%Y-%m-%dT%H:%M:%fZ', r.created_at / 1000.0, 'unixepoch') AS created,
       strftime('%Y-%m-%dT%H:%M:%fZ', r.updated_at / 1000.0, 'unixepoch') AS updated,
       r.id AS id
FROM redemptions r
LEFT JOIN items i ON i.journal = r.journal AND i.item = r.item
LEFT JOIN sales s ON s.journal = i.journal AND s.sale = i.sale;

CREATE VIEW ledger_list AS
SELECT strftime('%Y-%m-%dT%H:%M:%fZ', at / 1000.0, 'unixepoch') AS time,
       member,
       CASE account WHEN 1 THEN 'free' WHEN 2 THEN 'held' WHEN 3 THEN 'issued'
                    WHEN 4 THEN 'redeemed' END AS account,
       amount,
       CASE kind WHEN 1 THEN 'opened' WHEN 2 THEN 'credited' WHEN 3 THEN 'debited'
                 WHEN 4 THEN 'held' WHEN 5 THEN 'redeemed' WHEN 6 THEN 'confirmed'
                 WHEN 7 THEN 'released' WHEN 8 THEN 'reversed' END AS kind,
       redemption, journal, seq, leg
FROM ledger;

CREATE VIEW stock_list AS
SELECT s.id AS sale, i.sku AS sku, i.name AS item, t.held, t.confirmed, t.released, t.reversed,
       t.retired, t.total, t.granted, t.returned
FROM stock t
LEFT JOIN items i ON i.journal = t.journal AND i.item = t.item
LEFT JOIN sales s ON s.journal = i.journal AND s.sale = i.sale;
