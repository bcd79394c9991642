package mysql

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// flavour is which server it is.
type flavour struct {
	maria   bool
	version [3]int
}

// flavourOf reads VERSION(): "10.11.6-MariaDB-0+deb12u1", "8.4.3", "5.5.5-10.6.1-MariaDB".
func flavourOf(version string) flavour {
	f := flavour{maria: strings.Contains(version, "MariaDB")}
	if f.maria {
		version = strings.TrimPrefix(version, "5.5.5-")
	}
	for i, part := range strings.SplitN(version, ".", 3) {
		digits := part[:len(part)-len(strings.TrimLeft(part, "0123456789"))]
		if n, err := strconv.Atoi(digits); err == nil && i < 3 {
			f.version[i] = n
		}
	}
	return f
}

func (f flavour) String() string {
	name := "MySQL"
	if f.maria {
		name = "MariaDB"
	}
	return fmt.Sprintf("%s %d.%d.%d", name, f.version[0], f.version[1], f.version[2])
}

func (f flavour) atLeast(v ...int) bool {
	for i, n := range v {
		if f.version[i] != n {
			return f.version[i] > n
		}
	}
	return true
}

// dual: the server has RETAIN CURRENT PASSWORD (8.0.14) and ATTRIBUTE (8.0.21), by which
// we know whether it was done already.
func (f flavour) dual() bool { return !f.maria && f.atLeast(8, 0, 21) }

func (f flavour) plugin(params map[string]string) string {
	if p := params["plugin"]; p != "" && p != "default" {
		return p
	}
	if f.maria {
		return native
	}
	return cachingSHA2
}

// auth is the part of ALTER USER that sets a password: its hash, or its text.
func (f flavour) auth(plugin, hash, text string) string {
	switch {
	case f.maria && text != "":
		return " IDENTIFIED VIA " + plugin + " USING PASSWORD(" + literal(text) + ")"
	case f.maria:
		return " IDENTIFIED VIA " + plugin + " USING " + literal(hash)
	case text != "":
		return " IDENTIFIED WITH " + plugin + " BY " + literal(text)
	case plugin == cachingSHA2:
		return " IDENTIFIED WITH " + plugin + " AS 0x" + hex.EncodeToString([]byte(hash))
	}
	return " IDENTIFIED WITH " + plugin + " AS " + literal(hash)
}

// attribute is the marker as MySQL keeps it with the account: in the same statement. What
// else is in the account's attribute stays.
func (f flavour) attribute(m marker) string {
	if f.maria {
		return ""
	}
	// A map of strings and numbers can always be encoded.
	b, _ := json.Marshal(map[string]marker{"rotunda": m})
	return " ATTRIBUTE " + literal(string(b))
}

// set makes the server accept a password, and the account usable.
func (f flavour) set(a account, auth string, retain bool, m marker) string {
	if retain {
		auth += " RETAIN CURRENT PASSWORD"
	}
	return "ALTER USER " + a.sql() + auth + " ACCOUNT UNLOCK" + f.attribute(m)
}

// end gives the account a password that nobody knows, and locks it.
func (f flavour) end(a account, auth string) string {
	return "ALTER USER " + a.sql() + auth + " ACCOUNT LOCK"
}

// discard ends the older of two passwords.
func discard(a account) string { return "ALTER USER " + a.sql() + " DISCARD OLD PASSWORD" }

// tableDDL makes the table of markers of MariaDB.
func tableDDL(table string) string {
	return "CREATE TABLE " + table + " (account VARBINARY(400) PRIMARY KEY, rotation VARCHAR(64) NOT NULL, generation BIGINT NOT NULL, epoch BIGINT NOT NULL, fence BIGINT NOT NULL) ENGINE=InnoDB"
}
