-- Where the log is read on from, where it is a Kafka topic; moves with the watermarks.

CREATE TABLE log_offsets (
    topic       TEXT    NOT NULL,
    partition   INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) STRICT, WITHOUT ROWID;
