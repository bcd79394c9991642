-- +goose Up

-- What searches go by. Events are written once, in batches.
CREATE INDEX events_occurred_at ON events (occurred_at);
CREATE INDEX events_actor ON events (actor, leaf_index);
CREATE INDEX events_action ON events (action, leaf_index);
CREATE INDEX events_resource ON events (resource, leaf_index);
CREATE INDEX events_partner ON events (partner, leaf_index) WHERE partner <> '';
CREATE INDEX events_outcome ON events (outcome, leaf_index) WHERE outcome <> 'ok';
CREATE INDEX events_request_id ON events (request_id) WHERE request_id <> '';
CREATE INDEX events_address ON events (address, leaf_index) WHERE address <> '';
CREATE INDEX events_intent ON events (intent) WHERE intent <> '';

-- The tree, as C2SP tlog-tiles has it: up to 256 hashes each; level 0 holds leaf hashes.
CREATE TABLE trail_tiles (
    level  BIGINT NOT NULL,
    n      BIGINT NOT NULL,
    hashes BYTEA  NOT NULL,
    PRIMARY KEY (level, n)
);

-- Every signed head of the tree.
CREATE TABLE checkpoints (
    size      BIGINT PRIMARY KEY,
    root      BYTEA  NOT NULL,
    signed    TEXT   NOT NULL, -- the signed note
    signed_at BIGINT NOT NULL
);
CREATE TABLE cosignatures (
    size      BIGINT NOT NULL REFERENCES checkpoints (size),
    witness   TEXT   NOT NULL, -- its name
    line      TEXT   NOT NULL, -- the signature line of the note
    signed_at BIGINT NOT NULL, -- when, by the witness
    PRIMARY KEY (size, witness)
);

-- The keys that sign checkpoints.
CREATE TABLE trail_keys (
    number     BIGINT PRIMARY KEY, -- 1, 2, 3, …: the order in which they signed
    id         TEXT   NOT NULL UNIQUE, -- the key hash of its vkey, in hex
    vkey       TEXT   NOT NULL UNIQUE,
    private    BYTEA,              -- sealed; NULL once it is destroyed
    handover   TEXT   NOT NULL,    -- the note by which the key before handed over; '' for the first
    from_size  BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

-- How far each follower has come.
CREATE TABLE cursors (
    name       TEXT   PRIMARY KEY,
    next       BIGINT NOT NULL, -- the leaf index that it reads next
    updated_at BIGINT NOT NULL
);

-- Where copies of the trail go, and of its checkpoints.
CREATE TABLE sinks (
    name       TEXT   PRIMARY KEY,
    kind       TEXT   NOT NULL,
    config     TEXT   NOT NULL, -- JSON
    secret     BYTEA,           -- sealed
    created_at BIGINT NOT NULL
);
CREATE TABLE anchors (
    name       TEXT   PRIMARY KEY,
    kind       TEXT   NOT NULL,
    config     TEXT   NOT NULL, -- JSON
    secret     BYTEA,           -- sealed
    created_at BIGINT NOT NULL
);
CREATE TABLE witnesses (
    name       TEXT   PRIMARY KEY,
    vkey       TEXT   NOT NULL,
    url        TEXT   NOT NULL, -- '' : its cosignatures come through the API
    created_at BIGINT NOT NULL
);

-- How long events are kept, and how far pruning has come. One row.
CREATE TABLE retention (
    id      BIGINT PRIMARY KEY CHECK (id = 1),
    keep    BIGINT NOT NULL, -- microseconds; 0: for ever
    swept   BIGINT NOT NULL, -- up to where what was left behind was looked at again
    prunes  BIGINT NOT NULL, -- how many transactions have pruned something
    next_at BIGINT NOT NULL, -- when the next pass is due
    set_by  TEXT   NOT NULL, -- the actor who set keep, and why
    reason  TEXT   NOT NULL
);
INSERT INTO retention (id, keep, swept, prunes, next_at, set_by, reason) VALUES (1, 0, 0, 0, 0, '', '');

-- Started events without an end.
CREATE TABLE open_intents (
    id         TEXT   PRIMARY KEY, -- of the event
    started_at BIGINT NOT NULL
);
CREATE INDEX open_intents_started_at ON open_intents (started_at, id);

-- Legal holds: events that they cover are not pruned, nor erased.
CREATE TABLE holds (
    name       TEXT   PRIMARY KEY,
    reason     TEXT   NOT NULL,
    partner    TEXT   NOT NULL, -- '' : any
    resource   TEXT   NOT NULL, -- '' : any; with a trailing slash, everything below it
    created_at BIGINT NOT NULL
);
