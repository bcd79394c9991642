-- +goose Up
CREATE TABLE access_tokens (
    id           TEXT   PRIMARY KEY,
    name         TEXT   NOT NULL,
    role         TEXT   NOT NULL CHECK (role IN ('admin', 'operator', 'auditor', 'gateway', 'signer', 'partner')),
    partner      TEXT   NOT NULL, -- of a partner's token; else empty
    keysets      TEXT   NOT NULL, -- JSON array; empty: all
    cidrs        TEXT   NOT NULL, -- JSON array; empty: any
    hash         BYTEA  NOT NULL, -- HMAC-SHA-256 of the secret under the pepper of pepper_gen
    seal         BYTEA  NOT NULL, -- HMAC-SHA-256 of the rest of the row, under the same pepper
    pepper_gen   BIGINT NOT NULL,
    state        TEXT   NOT NULL CHECK (state IN ('active', 'revoked')),
    reason       TEXT   NOT NULL,
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL, -- 0: no end
    revoked_at   BIGINT NOT NULL,
    last_used_at BIGINT NOT NULL
);
-- Generation 0 is no pepper: rows are sealed, and key ids marked, with keys derived
-- from it, and it never changes. See apikeys/peppers.go.
CREATE TABLE peppers (
    gen        BIGINT PRIMARY KEY,
    sealed     BYTEA,           -- NULL once it is retired
    created_at BIGINT NOT NULL,
    retired_at BIGINT NOT NULL,
    CHECK ((sealed IS NULL) = (retired_at <> 0))
);
