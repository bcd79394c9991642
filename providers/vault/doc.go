// Package vault reaches HashiCorp Vault: a store of consumers' values, three kinds of
// target, and the client that they and the signing keys in Transit share.
//
//   - [KVKind], "vault-kv": values in a KV version 2 mount.
//   - [AppRoleKind], "vault-approle": secret ids of an AppRole, two at once.
//   - [DatabaseKind], "vault-database": passwords that Vault's database engine makes for
//     its static roles; [DatabaseRootKind], "vault-database-root": the password that
//     Vault itself logs in with, which nobody else gets to know.
//   - [TransitKind], "vault-transit": versions of a Transit key.
//
// # Login
//
// A [Client] logs in when it is first used: with a token, an AppRole, a Kubernetes
// service account, or a client certificate. Its own token is renewed after two thirds of
// its life, or a new login made. A refused call is repeated once after a new login,
// because Vault answers an ended token like a missing permission. Nothing else is
// repeated here: rotation does that, and knows when.
//
// auth=kubernetes sends a role and the service account's JWT, from a file that is read
// again at each login because the kubelet replaces it. Vault's methods "kubernetes" and
// "jwt" take the same request; the latter, with the cluster's issuer as its discovery
// address, needs no right to review tokens and is what HashiCorp recommends for
// short-lived tokens. It is the one that the tests use.
//
// # What Vault can't do, and what follows
//
//   - KV v2 has no idempotency token and no staging. Each write carries `cas`, the number
//     of the version it replaces, and so can happen once; whether an unanswered one did is
//     told by reading: the next version with our fields is ours. Custom metadata says
//     which rotation wrote it. It is plain text also in Vault's audit log, so there are
//     only ids in it.
//   - A secret id without a limit of uses keeps no trace of its use: there is no evidence
//     for an early end of a grace. Its time to live can't be changed once it exists, so
//     the dead man's switch is set when it is made (param secret_id_ttl); Vault looks for
//     ended ones once a minute.
//   - A static role tells when it was last rotated and not by whom. If that stamp moved
//     after our plan, the password is a new one, and is adopted. Vault's own word that it
//     set a password is no login: give the target a verify_url for one.
//   - rotate-root has no stamp at all. It is made again, which does no harm, since nobody
//     but Vault holds the value; the proof is that Vault connects anew with it.
//   - Transit versions end in order: a minimum ends all that are older. A version can't be
//     taken back while an older one is still in use.
//
// # Failure
//
// Sealed, out of reach, an internal error: fault.ErrUnavailable, the outcome is unknown.
// A rate limit: fault.ErrLimited. A missing permission: fault.ErrDenied; Check names the
// lines of policy that are missing. Answers are quoted without any string that was sent.
package vault
