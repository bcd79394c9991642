package store

import "database/sql"

// Writer gives tests the pool behind Update.
func Writer(db *DB) *sql.DB { return db.write }

// MigrationLock is the key of the advisory lock around Migrate.
const MigrationLock = migrationLock
