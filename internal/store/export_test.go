package store

import "database/sql"

// Writer gives tests the pool behind Update.
func Writer(db *DB) *sql.DB { return db.write }
