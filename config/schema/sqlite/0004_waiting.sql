-- What is looked for every few seconds, among ever more rows that are done: requests to send a
-- partition again, and letters that wait.

CREATE INDEX rewinds_open ON rewinds (id) WHERE is_done = 0;
CREATE INDEX dead_letters_waiting ON dead_letters (id) WHERE state <> 3;
