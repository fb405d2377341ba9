-- What was taken out of the tables, summed up: so that the rows that are left can still be held
-- against balances and stock. Only MySQL's months are taken out; the tables are the same.

CREATE TABLE archived_months (
    name     TEXT    NOT NULL,
    month    TEXT    NOT NULL,
    records  INTEGER NOT NULL,
    until_at INTEGER NOT NULL,
    is_done  INTEGER NOT NULL,
    PRIMARY KEY (name, month)
) STRICT, WITHOUT ROWID;

CREATE TABLE archived_balances (
    journal INTEGER NOT NULL,
    member  INTEGER NOT NULL,
    account INTEGER NOT NULL CHECK (account BETWEEN 1 AND 4),
    amount  INTEGER NOT NULL,
    PRIMARY KEY (journal, member, account)
) STRICT, WITHOUT ROWID;

CREATE TABLE archived_stock (
    journal   INTEGER NOT NULL,
    item      INTEGER NOT NULL,
    held      INTEGER NOT NULL,
    confirmed INTEGER NOT NULL,
    released  INTEGER NOT NULL,
    reversed  INTEGER NOT NULL,
    retired   INTEGER NOT NULL,
    PRIMARY KEY (journal, item)
) STRICT, WITHOUT ROWID;
