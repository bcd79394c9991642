-- +goose Up
CREATE TABLE partners (
    name               TEXT   PRIMARY KEY,
    state              TEXT   NOT NULL CHECK (state IN ('active', 'suspended')),
    reason             TEXT   NOT NULL,
    scopes             TEXT   NOT NULL, -- JSON array
    publishable_scopes TEXT   NOT NULL, -- JSON array
    max_keys           BIGINT NOT NULL,
    max_key_ttl        BIGINT NOT NULL, -- microseconds; 0: no bound
    signing_policy     TEXT   NOT NULL, -- JSON
    metadata           TEXT   NOT NULL, -- JSON object
    created_at         BIGINT NOT NULL,
    since              BIGINT NOT NULL,
    version            BIGINT NOT NULL,
    seal               BYTEA  NOT NULL
);

-- API keys and versions of request secrets: one lifecycle. See apikeys/doc.go.
CREATE TABLE partner_keys (
    id            TEXT    PRIMARY KEY,
    kind          TEXT    NOT NULL CHECK (kind IN ('api_key', 'request_secret')),
    partner       TEXT    NOT NULL REFERENCES partners (name),
    name          TEXT    NOT NULL,
    environment   TEXT    NOT NULL,
    class         TEXT    NOT NULL CHECK (class IN ('secret', 'publishable')),
    state         TEXT    NOT NULL CHECK (state IN ('active', 'retiring', 'retired', 'revoked', 'suspended')),
    scopes        TEXT    NOT NULL, -- JSON array
    cidrs         TEXT    NOT NULL, -- JSON array; empty: any
    rate_quota    BIGINT  NOT NULL, -- 0: no limit
    rate_window   BIGINT  NOT NULL, -- microseconds
    rate_burst    BIGINT  NOT NULL,
    metadata      TEXT    NOT NULL, -- JSON object
    origin        TEXT    NOT NULL CHECK (origin IN ('rotunda', 'sha256', 'raw')),
    weak          BOOLEAN NOT NULL,
    algorithm     TEXT    NOT NULL, -- of a request secret; else empty
    hash          BYTEA,            -- of an API key: HMAC-SHA-256 under the pepper of pepper_gen
    lookup        BYTEA,            -- of an imported API key: how it is found by its value
    salt          BYTEA,            -- of a weak one: for argon2id
    sealed        BYTEA,            -- a request secret; NULL once it has ended
    public_key    TEXT    NOT NULL, -- PEM, in place of a secret; else empty
    pepper_gen    BIGINT  NOT NULL, -- 0: none
    lineage       TEXT    NOT NULL, -- id of the first key of a line of rolls: they share a rate limit
    replaces      TEXT    NOT NULL,
    replaced_by   TEXT    NOT NULL,
    reason        TEXT    NOT NULL, -- of a revocation: a name of RFC 5280
    reason_text   TEXT    NOT NULL,
    created_at    BIGINT  NOT NULL,
    since         BIGINT  NOT NULL,
    expires_at    BIGINT  NOT NULL, -- 0: no end
    grace_ends_at BIGINT  NOT NULL, -- 0: was not rolled
    quiet         BIGINT  NOT NULL, -- microseconds; 0: the grace ends by the clock only
    warned_at     BIGINT  NOT NULL, -- when its use inside the grace was last told of
    next_at       BIGINT  NOT NULL, -- when the next pass has to look at it; 0: never
    first_used_at BIGINT  NOT NULL,
    last_used_at  BIGINT  NOT NULL,
    version       BIGINT  NOT NULL,
    seal          BYTEA   NOT NULL, -- HMAC-SHA-256 of the row, but for its use: see apikeys/seal.go
    CHECK (kind <> 'api_key' OR (hash IS NOT NULL AND sealed IS NULL)),
    CHECK (kind <> 'request_secret' OR hash IS NULL),
    CHECK (state NOT IN ('retired', 'revoked') OR sealed IS NULL),
    CHECK (expires_at = 0 OR grace_ends_at <= expires_at)
);
CREATE INDEX partner_keys_partner ON partner_keys (partner, kind, created_at, id);
CREATE INDEX partner_keys_created_at ON partner_keys (kind, created_at, id);
-- Those that count against max_keys.
CREATE INDEX partner_keys_live ON partner_keys (partner, expires_at) WHERE state IN ('active', 'suspended') AND grace_ends_at = 0;
CREATE INDEX partner_keys_next_at ON partner_keys (next_at) WHERE next_at > 0;
CREATE INDEX partner_keys_pepper ON partner_keys (pepper_gen, id) WHERE state IN ('active', 'retiring', 'suspended');
CREATE INDEX partner_keys_lookup ON partner_keys (lookup, weak) WHERE lookup IS NOT NULL;
-- Those that count against the bound of weak keys.
CREATE INDEX partner_keys_weak ON partner_keys (expires_at) WHERE weak AND state IN ('active', 'retiring', 'suspended');
-- A name has one version that was not rolled and has not ended.
CREATE UNIQUE INDEX partner_keys_secret_name ON partner_keys (partner, name)
    WHERE kind = 'request_secret' AND state IN ('active', 'suspended') AND grace_ends_at = 0;
CREATE INDEX partner_keys_name ON partner_keys (partner, name, created_at) WHERE kind = 'request_secret';
CREATE INDEX partner_keys_grace ON partner_keys (lineage) WHERE state IN ('retiring', 'suspended') AND grace_ends_at > 0;

-- Nonces of accepted requests, until a replay would be too old anyway.
CREATE TABLE nonces (
    key_id     TEXT   NOT NULL,
    nonce      TEXT   NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (key_id, nonce)
);
CREATE INDEX nonces_expires_at ON nonces (expires_at);
