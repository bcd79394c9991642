-- +goose Up
CREATE TABLE keysets (
    id             TEXT   PRIMARY KEY,
    name           TEXT   NOT NULL UNIQUE,
    issuer         TEXT   NOT NULL,
    algorithm      TEXT   NOT NULL,
    policy         TEXT   NOT NULL,
    policy_version BIGINT NOT NULL,
    version        BIGINT NOT NULL, -- grows by one with every change of the published set
    created_at     BIGINT NOT NULL,
    next_at        BIGINT NOT NULL, -- when the next move is due
    fallback_since BIGINT NOT NULL, -- 0, or since when the standby signs for the active key
    lead_until     BIGINT NOT NULL, -- 0, or until when documents of an earlier policy may be cached
    members        TEXT   NOT NULL, -- JSON: kid → seal of its row, for each published key
    seal           BYTEA  NOT NULL  -- HMAC-SHA-256 of the row: see jwks/seal.go
);
CREATE INDEX keysets_next_at ON keysets (next_at);

CREATE TABLE signing_keys (
    keyset_id      TEXT   NOT NULL REFERENCES keysets (id),
    kid            TEXT   NOT NULL,
    state          TEXT   NOT NULL CHECK (state IN ('pending', 'active', 'retiring', 'retired', 'revoked')),
    algorithm      TEXT   NOT NULL,
    public_jwk     TEXT   NOT NULL,
    home           TEXT   NOT NULL, -- 'none' once the private half is destroyed
    private        BYTEA,           -- sealed, or a reference to where it lives
    origin         TEXT   NOT NULL CHECK (origin IN ('generated', 'imported')),
    reason         TEXT   NOT NULL,
    max_token_life BIGINT NOT NULL, -- longest life ever issued under this key, microseconds
    created_at     BIGINT NOT NULL,
    since          BIGINT NOT NULL,
    served_since   BIGINT NOT NULL, -- start of the present unbroken time of being served
    activated_at   BIGINT NOT NULL,
    demoted_at     BIGINT NOT NULL,
    withdrawn_at   BIGINT NOT NULL,
    seal           BYTEA  NOT NULL,
    PRIMARY KEY (keyset_id, kid),
    CHECK (state NOT IN ('retired', 'revoked') OR (home = 'none' AND private IS NULL))
);
CREATE UNIQUE INDEX signing_keys_one_active ON signing_keys (keyset_id) WHERE state = 'active';
CREATE UNIQUE INDEX signing_keys_one_pending ON signing_keys (keyset_id) WHERE state = 'pending';
CREATE INDEX signing_keys_withdrawn_at ON signing_keys (keyset_id, withdrawn_at);

-- How many tokens each key signed, per minute: what a revocation would refuse is predicted from it.
CREATE TABLE signing_counts (
    keyset_id TEXT   NOT NULL,
    kid       TEXT   NOT NULL,
    minute    BIGINT NOT NULL, -- Unix time divided by 60
    count     BIGINT NOT NULL,
    PRIMARY KEY (keyset_id, kid, minute)
);

-- One row. served_at is when a replica last served documents.
CREATE TABLE publication (
    id        BIGINT PRIMARY KEY CHECK (id = 1),
    served_at BIGINT NOT NULL,
    seal_key  BYTEA  -- sealed under the KEK
);
INSERT INTO publication (id, served_at) VALUES (1, 0);
