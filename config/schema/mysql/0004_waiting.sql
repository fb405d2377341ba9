-- What is looked for every few seconds, among ever more rows that are done: requests to send a
-- partition again, and letters that wait.

CREATE INDEX rewinds_open ON rewinds (is_done, id);

CREATE INDEX dead_letters_waiting ON dead_letters (state, id);
