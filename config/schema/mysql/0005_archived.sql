-- What `onrush db archive` took out, summed up: so that the rows that are left can still be held
-- against balances and stock.

CREATE TABLE IF NOT EXISTS archived_months (
    name     VARCHAR(16)      NOT NULL,
    month    CHAR(7)          NOT NULL,
    records  BIGINT UNSIGNED  NOT NULL,
    until_at BIGINT UNSIGNED  NOT NULL,
    is_done  TINYINT UNSIGNED NOT NULL,
    PRIMARY KEY (name, month)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS archived_balances (
    journal BIGINT UNSIGNED  NOT NULL,
    member  BIGINT UNSIGNED  NOT NULL,
    account TINYINT UNSIGNED NOT NULL,
    amount  BIGINT           NOT NULL,
    PRIMARY KEY (journal, member, account),
    CONSTRAINT archived_balances_account CHECK (account BETWEEN 1 AND 4)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS archived_stock (
    journal   BIGINT UNSIGNED NOT NULL,
    item      INT UNSIGNED    NOT NULL,
    held      BIGINT          NOT NULL,
    confirmed BIGINT          NOT NULL,
    released  BIGINT          NOT NULL,
    reversed  BIGINT          NOT NULL,
    retired   BIGINT          NOT NULL,
    PRIMARY KEY (journal, item)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
