// Package rotation changes credentials, and loses none.
//
// # Model
//
// A [Credential] is a value that a target accepts (a database, a cloud account) and
// consumers read in stores (Vault, AWS Secrets Manager, Rotunda itself). Stores and
// targets are [System]s, reached through package providers. A credential has a strategy:
// how the old value and the new one overlap; a schedule; and a grace, in which the old
// one stays accepted.
//
// Each value is a [CredentialVersion]: staged (made, and sealed with us), current (what
// consumers read), previous (superseded, still accepted), retired (ended; its value is
// destroyed). Moving from one to the next is a [Rotation], a run. Its rows in the database
// are the queue of the workers and all that anybody remembers.
//
// # Steps
//
// A run does one effect at a time. What comes next is decided by what is done
// (work.next), not by where a process was, so recovery after a crash is the next
// advance of the same code:
//
//	plan     E0  look at the target and all stores; have a new value made; seal and commit it
//	issue    E1  a copy of it staged where a store has such a thing
//	         E2  the target accepts it
//	verify   E3  a login with it proves that
//	publish  E4  each store serves it, if it serves what it served before
//	         E5  it becomes current, and webhooks are queued, in one transaction
//	grace    E6  the old value ends by itself at the end; evidence of its use
//	revoke   E7  the old value is ended, by its recorded id
//	         E8  staged copies are removed, the sealed old value is wiped, the run ends
//
// The steps of a run, and the moves between them (a rollback and a value that the target
// will not have lead back):
//
//	stateDiagram-v2
//	  [*] --> plan
//	  plan --> issue
//	  plan --> failed
//	  plan --> done
//	  issue --> verify
//	  issue --> plan
//	  issue --> revoke
//	  issue --> failed
//	  issue --> done
//	  verify --> publish
//	  verify --> grace
//	  verify --> revoke
//	  verify --> issue
//	  verify --> failed
//	  verify --> done
//	  publish --> grace
//	  publish --> revoke
//	  publish --> verify
//	  publish --> issue
//	  publish --> failed
//	  publish --> done
//	  grace --> revoke
//	  grace --> verify
//	  grace --> failed
//	  grace --> done
//	  revoke --> done
//	  revoke --> failed
//	  failed --> plan
//	  failed --> issue
//	  failed --> verify
//	  failed --> publish
//	  failed --> grace
//	  failed --> revoke
//	  failed --> done
//	  done --> [*]
//
// # Invariants
//
//   - At every instant what consumers read is accepted, or a value that is sealed with us
//     is. With alternate and dual the first holds always.
//   - An effect is begun only when all that it needs is durable: the value, the ids that
//     were there before, the version that a store served, and the trail's event of its
//     start. It is repeated with the same arguments until its outcome is known.
//   - Nothing is ended but by its recorded id, and nothing that consumers read. What a
//     target made and could not be kept is taken back at once, or by the next try.
//   - A run has one event of its start and one of its end; so has each effect.
//   - One run of a credential at a time. A run that waits has never been claimed.
//   - A value that may be accepted stays sealed until it was ended, also when a person
//     abandons its run; the next run then ends it.
//
// # Who works on a run
//
// A process claims runs that are due by compare-and-swap on holder and epoch; the epoch
// grows with each claim. Each process has one heartbeat, renewed every quarter of its
// lease; a process that can't renew it stops its effects at half of the lease, and others
// may take its runs when the lease is over. Every write of a run is guarded by holder,
// epoch and version: a process that was taken for dead can record nothing. It may still
// have an effect under way; so effects are idempotent or compare-and-swap, and targets that
// keep a marker get the epoch (which grows over all runs of a credential) and refuse older ones.
//
// A wall clock that was ahead for a while delays nothing for good: what it put off for longer
// than anything waits is due again within a minute, and a grace never lasts longer than it is.
//
// Emergencies come first, and one worker in each process is theirs alone. A target has a
// number of runs at once, so that a slow one can't have all workers; a store has a quota of
// writes, kept by each process for itself.
//
// # Schedules
//
// A credential has the firing that is due next (DueAt) and the instant at which it has to be looked
// at (NextAt): the firing itself, or the next opening of its windows. A firing may start until that
// opening is over; without windows, until the next firing. After that it is missed, which is an event
// and a webhook, and the credential's rule says what follows: late, in the next opening; skip, at the
// next firing; alarm, not before a person rotates it. Of several firings that were missed together one
// is made up. A run that can't start leaves its firing due, and is tried again after a minute, then
// less and less often. Starting a run and moving on to the next firing are one transaction on the locked
// row, so no restart and no second process rotates twice; nor does a clock that is set back by up to
// two days. Somebody's rotation since the firing counts for it, and a period begins anew with it.
//
// # Drift
//
// Between rotations, and in a grace, a probe compares what stores serve with our value and the
// version that we put there, logs in to the target once, and reads the target's marker. What can't be
// asked changes nothing that is known. A change is one event and one webhook.
//
// # Own login
//
// The login of a store or a target may be a credential. It is then opened with the current value,
// and, when that is denied, with the staged and the previous one: one of them is accepted whatever
// step the rotation of the login is at.
//
// # Emergencies and webhooks
//
// An incident begins the runs of its selection a batch at a time; how far it came is written with each
// batch. A webhook is written with the change that it tells of, claimed for one try at a time, and
// tried for three days. Endpoints have turns of their own: one that hangs holds up no other.
//
// # What happens on failure
//
// A failed call is one of five things (providers.Outcome):
//
//   - rejected: the target will not have this value. The run makes another one, three at
//     most. As an answer to a login it means "not yet", eight times at most, so that no
//     account is locked.
//   - refused: not for us, as things are. The run fails.
//   - moved: somebody else changed what we look at. The run fails with the reason drift, and
//     overwrites nothing.
//   - throttled, unknown: the same again, with the same value, later; for as long as it
//     takes. After a day an event says so.
//
// A refusal of E2 after an earlier try of unknown outcome is checked by a login: the target
// may refuse the value because it has it.
//
// A run that failed keeps its values and waits for a person: retry (the same value; after
// drift of a store it replaces what is there), rollback (the old value becomes current again,
// by the same effects, once an end that the target was told of is taken back), or abandon
// (what is left is listed by id). It holds up other runs of its credential. What an abandoned
// run left published counts as what consumers read: with alternate the next run takes the
// other account, and where both are read it fails and takes neither, unless it is an emergency. Evidence that can't be had ends no grace early; a target that can't end a value by
// itself is no reason to stop.
//
// A row of a system, a credential, a place or a version that somebody else changed in the
// database is used for nothing: each has a seal under a key of ours. What a run has to know
// is encrypted.
//
// # The loop
//
// The [Scheduler] calls each domain's pass. A pass is one bounded look at what is due
// followed by the work; it is named, tested alone, and callable by hand
// ([Scheduler.RunOnce]). The loop adds nothing to what a pass does, so "rotate now" and
// "rotate on schedule" are the same code. Each [Pass] has a goroutine of its own: run the pass,
// sleep until the instant it asked for, and never longer than Every; then run it again. The
// loop remembers nothing that a restart would lose, so a crash is a pause.
//
//   - A pass never overlaps itself inside one Scheduler, by hand or by the loop.
//     Between processes it may; passes claim their rows by compare-and-swap.
//   - A pass that fails, panics or hangs delays only itself.
//   - A Wake that arrives while a pass runs makes it run once more afterwards.
//   - Sleeping follows the monotonic clock. A wall clock that is stepped, in
//     either direction and by any amount, delays a pass by at most Every.
//
// An error is logged once and given to Observe, and the pass is tried again after
// a delay that doubles from half a second to 15 seconds, with jitter, until it
// succeeds. A Wake cuts that delay short. A panic is an error whose stack is in
// the log. A pass gets a context that ends after Timeout; one that ignores it is
// reported while it is still running, once, and keeps only its own loop waiting.
// A wall clock that jumps against the monotonic clock is logged and given to
// Observe as [Outcome.Step]: schedules are wall-clock times, so somebody should know.
package rotation
