-- +goose Up
-- The store that is Rotunda's own: see providers/builtin.
CREATE TABLE builtin_paths (
    path     TEXT   PRIMARY KEY,
    revision BIGINT NOT NULL, -- grows by one with each change
    since    BIGINT NOT NULL, -- of the last change
    head     BYTEA  NOT NULL  -- sealed: which version has which label, and which there are
);

-- Values. What is no longer kept has no row.
CREATE TABLE builtin_versions (
    path   TEXT   NOT NULL REFERENCES builtin_paths (path),
    number BIGINT NOT NULL, -- 1, 2, 3, … of a path
    sealed BYTEA  NOT NULL,
    PRIMARY KEY (path, number)
);
