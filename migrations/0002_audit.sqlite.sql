-- +goose Up

-- The head of the trail. One row.
CREATE TABLE trail (
    id      BIGINT PRIMARY KEY CHECK (id = 1),
    origin  TEXT   NOT NULL, -- the log's name in checkpoints; '' until the first start
    size    BIGINT NOT NULL, -- how many leaves the tree has
    root    BYTEA  NOT NULL, -- its root hash
    key_id  TEXT   NOT NULL, -- of trail_keys: which key signs
    pruned  BIGINT NOT NULL, -- events below it may be deleted
    stopped TEXT   NOT NULL  -- '' or why nothing more may be recorded
);
INSERT INTO trail (id, origin, size, root, key_id, pruned, stopped)
    VALUES (1, '', 0, X'E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855', '', 0, '');

-- Events that have a leaf index.
CREATE TABLE events (
    leaf_index  INTEGER PRIMARY KEY,
    id          TEXT   NOT NULL UNIQUE,
    occurred_at BIGINT NOT NULL,
    actor       TEXT   NOT NULL,
    action      TEXT   NOT NULL,
    resource    TEXT   NOT NULL,
    partner     TEXT   NOT NULL,
    outcome     TEXT   NOT NULL CHECK (outcome IN ('ok', 'denied', 'started', 'failed')),
    reason      TEXT   NOT NULL,
    request_id  TEXT   NOT NULL,
    address     TEXT   NOT NULL,
    detail      TEXT   NOT NULL,
    count       BIGINT NOT NULL CHECK (count >= 1),
    intent      TEXT   NOT NULL, -- the id of the started event that this one ends
    salt        BYTEA  NOT NULL,
    checks      BYTEA  NOT NULL,
    erased      BIGINT NOT NULL  -- bit n: field n holds its commitment in base64
);

-- Events that wait for their leaf index, in the order in which they were written.
CREATE TABLE event_queue (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT   NOT NULL,
    occurred_at BIGINT NOT NULL,
    actor       TEXT   NOT NULL,
    action      TEXT   NOT NULL,
    resource    TEXT   NOT NULL,
    partner     TEXT   NOT NULL,
    outcome     TEXT   NOT NULL CHECK (outcome IN ('ok', 'denied', 'started', 'failed')),
    reason      TEXT   NOT NULL,
    request_id  TEXT   NOT NULL,
    address     TEXT   NOT NULL,
    detail      TEXT   NOT NULL,
    count       BIGINT NOT NULL CHECK (count >= 1),
    intent      TEXT   NOT NULL,
    salt        BYTEA  NOT NULL,
    checks      BYTEA  NOT NULL,
    leaf_hash   BYTEA  NOT NULL
);
