// Package bedtest starts real servers for tests: the systems that adapters talk to,
// as they are installed on the machine.
//
// A function such as [PostgreSQL] returns the one server of this test process, which is
// started at first use; a test isolates itself inside of it by fresh names. A function
// such as [NewPostgreSQL] starts one for a test alone, which may stop it, restart it
// and read all of its log.
//
// Servers listen on 127.0.0.1 only, log every statement, do not sync their files, and
// have a certificate of their own. Each belongs to a small supervisor that is bound to
// the test process by a pipe: however that process ends, the kernel closes the pipe,
// and the server and its folder go. A server that is not installed fails the test; it
// is never skipped.
//
// As root, servers run as the users that their packages made: postgres, mysql, redis.
package bedtest
