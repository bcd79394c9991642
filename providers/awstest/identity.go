package awstest

import (
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// maxKeys is how many access keys a user may have (IAM quotas).
const maxKeys = 2

type userRecord struct {
	name, id string
	admin    bool
	created  time.Time
	tags     map[string]string
}

// keyRecord is an access key of a user, or of a session when role is set.
type keyRecord struct {
	id, secret, token string
	user              *userRecord
	role, session     string
	active            bool
	created, expires  time.Time
	lastUsed          time.Time
	lastService       string

	hiddenReads, hiddenLogins int
	hiddenUntil               time.Time
}

type roleRecord struct{ externalID string }

func (k *keyRecord) admin() bool { return k.role != "" || k.user.admin }

func (k *keyRecord) arn(account string) string {
	if k.role != "" {
		return "arn:aws:sts::" + account + ":assumed-role/" + k.role + "/" + k.session
	}
	return "arn:aws:iam::" + account + ":user/" + k.user.name
}

func (k *keyRecord) hiddenFromLogin(now time.Time) bool {
	k.hiddenLogins--
	return k.hiddenLogins >= 0 || now.Before(k.hiddenUntil)
}

func (k *keyRecord) hiddenFromList(now time.Time) bool {
	k.hiddenReads--
	return k.hiddenReads >= 0 || now.Before(k.hiddenUntil)
}

// User makes an IAM user with one access key. An admin may do everything, another user
// only ask who it is.
func (s *Sim) User(name string, admin bool) (accessKey, secretKey string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.newKey(s.newUser(name, admin))
	return k.id, k.secret
}

// NewUser makes an IAM user without access keys, who may only ask who it is.
func (s *Sim) NewUser(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newUser(name, false)
}

func (s *Sim) newUser(name string, admin bool) *userRecord {
	u := &userRecord{name: name, id: "AIDA" + rand.Text()[:17], admin: admin, created: s.now(), tags: map[string]string{}}
	s.users[name] = u
	return u
}

// Role makes a role that administrators may assume with the external id, and returns
// its ARN.
func (s *Sim) Role(name, externalID string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	arn := "arn:aws:iam::" + s.Account + ":role/" + name
	s.roles[arn] = &roleRecord{externalID}
	return arn
}

// ExpireSessions ends all sessions of roles that were assumed so far.
func (s *Sim) ExpireSessions() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keys {
		if k.role != "" {
			k.expires = s.now()
		}
	}
}

// Key is an access key as it is, whatever lags.
type Key struct {
	ID, Secret string
	Active     bool
	Created    time.Time
}

// Keys are the access keys of a user, oldest first, past the API and the lag.
func (s *Sim) Keys(user string) []Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Key
	for _, k := range s.keysOf(user) {
		out = append(out, Key{k.id, k.secret, k.active, k.created})
	}
	return out
}

// NewKey makes one more access key for a user, as another program would, if the user
// has less than two; else it returns the zero Key.
func (s *Sim) NewKey(user string) Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users[user] == nil || len(s.keysOf(user)) >= maxKeys {
		return Key{}
	}
	k := s.newKey(s.users[user])
	return Key{k.id, k.secret, k.active, k.created}
}

func (s *Sim) keysOf(user string) []*keyRecord {
	var out []*keyRecord
	for _, k := range s.keys {
		if k.user != nil && k.user.name == user {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b *keyRecord) int {
		if c := a.created.Compare(b.created); c != 0 {
			return c
		}
		return strings.Compare(a.id, b.id)
	})
	return out
}

func (s *Sim) newKey(u *userRecord) *keyRecord {
	k := &keyRecord{
		id: "AKIA" + rand.Text()[:16], secret: (rand.Text() + rand.Text())[:40],
		user: u, active: true, created: s.now().Truncate(time.Second),
		hiddenReads: s.lagReads, hiddenLogins: s.lagReads,
	}
	if s.lagFor > 0 {
		k.hiddenUntil = s.now().Add(s.lagFor)
	}
	s.keys[k.id] = k
	return k
}

func noSuch(what, name string) *refusal {
	return refuse("NoSuchEntity", "The %s with %s cannot be found.", what, name)
}

// user is the user that the request names, or whose key signed it.
func (s *Sim) user(caller *keyRecord, in map[string]any) (*userRecord, error) {
	name, ok := in["UserName"].(string)
	if !ok {
		if caller.user == nil {
			return nil, refuse("ValidationError", "Must specify userName when calling with non-User credentials")
		}
		return caller.user, nil
	}
	if u := s.users[name]; u != nil {
		return u, nil
	}
	return nil, noSuch("user", "name "+name)
}

func (s *Sim) iam() map[string]handler {
	return map[string]handler{
		"CreateUser":           s.createUser,
		"DeleteUser":           s.deleteUser,
		"GetUser":              s.getUser,
		"TagUser":              s.tagUser,
		"UntagUser":            s.untagUser,
		"CreateAccessKey":      s.createAccessKey,
		"ListAccessKeys":       s.listAccessKeys,
		"UpdateAccessKey":      s.updateAccessKey,
		"DeleteAccessKey":      s.deleteAccessKey,
		"GetAccessKeyLastUsed": s.getAccessKeyLastUsed,
	}
}

func (s *Sim) describe(u *userRecord) map[string]any {
	out := map[string]any{"Path": "/", "UserName": u.name, "UserId": u.id, "CreateDate": u.created, "Arn": "arn:aws:iam::" + s.Account + ":user/" + u.name}
	if len(u.tags) > 0 {
		var tags []any
		for _, k := range slices.Sorted(maps.Keys(u.tags)) {
			tags = append(tags, map[string]any{"Key": k, "Value": u.tags[k]})
		}
		out["Tags"] = tags
	}
	return out
}

func (s *Sim) createUser(_ *keyRecord, in map[string]any) (map[string]any, error) {
	name := in["UserName"].(string)
	if s.users[name] != nil {
		return nil, refuse("EntityAlreadyExists", "User with name %s already exists.", name)
	}
	u := s.newUser(name, false)
	tags, _ := in["Tags"].([]any)
	for _, t := range tags {
		tag := t.(map[string]any)
		u.tags[tag["Key"].(string)] = tag["Value"].(string)
	}
	return map[string]any{"User": s.describe(u)}, nil
}

func (s *Sim) deleteUser(caller *keyRecord, in map[string]any) (map[string]any, error) {
	u, err := s.user(caller, in)
	if err != nil {
		return nil, err
	}
	if len(s.keysOf(u.name)) > 0 {
		return nil, &refusal{"DeleteConflict", "Cannot delete entity, must delete access keys first.", 409}
	}
	delete(s.users, u.name)
	return nil, nil
}

func (s *Sim) getUser(caller *keyRecord, in map[string]any) (map[string]any, error) {
	u, err := s.user(caller, in)
	if err != nil {
		return nil, err
	}
	return map[string]any{"User": s.describe(u)}, nil
}

func (s *Sim) tagUser(caller *keyRecord, in map[string]any) (map[string]any, error) {
	u, err := s.user(caller, in)
	if err != nil {
		return nil, err
	}
	for _, t := range in["Tags"].([]any) {
		tag := t.(map[string]any)
		u.tags[tag["Key"].(string)] = tag["Value"].(string)
	}
	return nil, nil
}

func (s *Sim) untagUser(caller *keyRecord, in map[string]any) (map[string]any, error) {
	u, err := s.user(caller, in)
	if err != nil {
		return nil, err
	}
	for _, k := range in["TagKeys"].([]any) {
		delete(u.tags, k.(string))
	}
	return nil, nil
}

func (s *Sim) createAccessKey(caller *keyRecord, in map[string]any) (map[string]any, error) {
	u, err := s.user(caller, in)
	if err != nil {
		return nil, err
	}
	if len(s.keysOf(u.name)) >= maxKeys {
		return nil, refuse("LimitExceeded", "Cannot exceed quota for AccessKeysPerUser: %d", maxKeys)
	}
	k := s.newKey(u)
	return map[string]any{"AccessKey": map[string]any{
		"UserName": u.name, "AccessKeyId": k.id, "SecretAccessKey": k.secret, "Status": "Active", "CreateDate": k.created,
	}}, nil
}

func (s *Sim) listAccessKeys(caller *keyRecord, in map[string]any) (map[string]any, error) {
	u, err := s.user(caller, in)
	if err != nil {
		return nil, err
	}
	list := []any{}
	for _, k := range s.keysOf(u.name) {
		if !k.hiddenFromList(s.now()) {
			list = append(list, map[string]any{"UserName": u.name, "AccessKeyId": k.id, "Status": k.status(), "CreateDate": k.created})
		}
	}
	return map[string]any{"AccessKeyMetadata": list, "IsTruncated": false}, nil
}

func (k *keyRecord) status() string {
	if k.active {
		return "Active"
	}
	return "Inactive"
}

// key is the access key that the request names, if the user has it.
func (s *Sim) key(caller *keyRecord, in map[string]any) (*keyRecord, error) {
	u, err := s.user(caller, in)
	if err != nil {
		return nil, err
	}
	id := in["AccessKeyId"].(string)
	if k := s.keys[id]; k != nil && k.user == u {
		return k, nil
	}
	return nil, noSuch("Access Key", "id "+id)
}

func (s *Sim) updateAccessKey(caller *keyRecord, in map[string]any) (map[string]any, error) {
	k, err := s.key(caller, in)
	if err != nil {
		return nil, err
	}
	k.active = in["Status"] == "Active"
	return nil, nil
}

func (s *Sim) deleteAccessKey(caller *keyRecord, in map[string]any) (map[string]any, error) {
	k, err := s.key(caller, in)
	if err != nil {
		return nil, err
	}
	delete(s.keys, k.id)
	return nil, nil
}

func (s *Sim) getAccessKeyLastUsed(_ *keyRecord, in map[string]any) (map[string]any, error) {
	k := s.keys[in["AccessKeyId"].(string)]
	if k == nil || k.user == nil {
		// What AWS answers for a key that is not in the caller's account.
		return nil, &refusal{"AccessDenied", "The access key is not known in this account.", 403}
	}
	used := map[string]any{"ServiceName": "N/A", "Region": "N/A"}
	if !k.lastUsed.IsZero() {
		used = map[string]any{"ServiceName": k.lastService, "Region": s.Region, "LastUsedDate": k.lastUsed}
	}
	return map[string]any{"UserName": k.user.name, "AccessKeyLastUsed": used}, nil
}

func (s *Sim) sts() map[string]handler {
	return map[string]handler{"GetCallerIdentity": s.getCallerIdentity, "AssumeRole": s.assumeRole}
}

func (s *Sim) getCallerIdentity(caller *keyRecord, _ map[string]any) (map[string]any, error) {
	id := "AROA" + caller.role + ":" + caller.session
	if caller.user != nil {
		id = caller.user.id
	}
	return map[string]any{"Account": s.Account, "Arn": caller.arn(s.Account), "UserId": id}, nil
}

func (s *Sim) assumeRole(_ *keyRecord, in map[string]any) (map[string]any, error) {
	arn, session := in["RoleArn"].(string), in["RoleSessionName"].(string)
	given, _ := in["ExternalId"].(string)
	role := s.roles[arn]
	if role == nil || role.externalID != given {
		return nil, &refusal{"AccessDenied", "User is not authorized to perform: sts:AssumeRole on resource: " + arn, 403}
	}
	seconds, ok := in["DurationSeconds"].(int)
	if !ok {
		seconds = 3600
	}
	_, name, _ := strings.Cut(arn, ":role/")
	k := &keyRecord{
		id: "ASIA" + rand.Text()[:16], secret: (rand.Text() + rand.Text())[:40], token: rand.Text() + rand.Text(),
		role: name, session: session, active: true, created: s.now(), expires: s.now().Add(time.Duration(seconds) * time.Second).Truncate(time.Second),
	}
	s.keys[k.id] = k
	return map[string]any{
		"Credentials":     map[string]any{"AccessKeyId": k.id, "SecretAccessKey": k.secret, "SessionToken": k.token, "Expiration": k.expires},
		"AssumedRoleUser": map[string]any{"AssumedRoleId": fmt.Sprintf("AROA%s:%s", strings.ToUpper(rand.Text()[:17]), session), "Arn": k.arn(s.Account)},
	}, nil
}
