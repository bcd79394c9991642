package awstest

import (
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
)

func (s *Sim) secretsManager() map[string]handler {
	return map[string]handler{
		"CreateSecret":             s.createSecret,
		"DeleteSecret":             s.deleteSecret,
		"RestoreSecret":            s.restoreSecret,
		"DescribeSecret":           s.describeSecret,
		"GetSecretValue":           s.getSecretValue,
		"PutSecretValue":           s.putSecretValue,
		"UpdateSecret":             s.updateSecret,
		"UpdateSecretVersionStage": s.updateSecretVersionStage,
		"ListSecretVersionIds":     s.listSecretVersionIDs,
		"RotateSecret":             s.rotateSecret,
		"CancelRotateSecret":       s.cancelRotateSecret,
	}
}

func (s *Sim) createSecret(_ *keyRecord, in map[string]any) (map[string]any, error) {
	name := in["Name"].(string)
	id, value := token(in), valueOf(in)
	if len(value) > 1 {
		return nil, refuse("InvalidParameterException", "You can't specify both a binary secret value and a string secret value in the same secret.")
	}
	if r := s.secrets[name]; r != nil {
		same, exists := r.state.versions[id]
		switch {
		case !r.state.deleted.IsZero():
			return nil, refuse("InvalidRequestException", "You can't create this secret because a secret with this name is already scheduled for deletion.")
		case exists && maps.Equal(same.value, value):
			return map[string]any{"ARN": r.state.arn, "Name": name, "VersionId": id}, nil
		}
		return nil, refuse("ResourceExistsException", "The operation failed because the secret %s already exists.", name)
	}
	now := s.now()
	r := &secretRecord{}
	s.write(r, func(st *secretState) {
		*st = secretState{
			exists: true, name: name, created: now,
			arn:      fmt.Sprintf("arn:aws:secretsmanager:%s:%s:secret:%s-%s", s.Region, s.Account, name, rand.Text()[:6]),
			versions: map[string]secretVersion{}, labels: map[string]string{},
		}
		st.description, _ = in["Description"].(string)
		st.kms, _ = in["KmsKeyId"].(string)
		if len(value) == 1 {
			st.versions[id] = secretVersion{id, value, now}
			st.move(labelCurrent, id)
		}
	})
	s.secrets[name] = r
	out := map[string]any{"ARN": r.state.arn, "Name": name}
	if len(value) == 1 {
		out["VersionId"] = id
	}
	return out, nil
}

func (s *Sim) deleteSecret(_ *keyRecord, in map[string]any) (map[string]any, error) {
	r, err := s.find(in)
	if err != nil {
		return nil, err
	}
	now := s.now()
	force, _ := in["ForceDeleteWithoutRecovery"].(bool)
	days, given := in["RecoveryWindowInDays"].(int)
	switch {
	case given && force:
		return nil, refuse("InvalidParameterException", "You can't use ForceDeleteWithoutRecovery in conjunction with RecoveryWindowInDays.")
	case given && (days < 7 || days > 30):
		return nil, refuse("InvalidParameterException", "RecoveryWindowInDays value must be between 7 and 30 days (inclusive).")
	case !given:
		days = 30
	}
	r.state.deleted, r.state.changed = now, now
	ends := now.AddDate(0, 0, days)
	if force {
		ends, r.purging, r.purgeReads = now, true, s.lagReads
		if s.lagReads == 0 {
			delete(s.secrets, r.state.name)
		}
	}
	return map[string]any{"ARN": r.state.arn, "Name": r.state.name, "DeletionDate": ends}, nil
}

func (s *Sim) restoreSecret(_ *keyRecord, in map[string]any) (map[string]any, error) {
	r, err := s.find(in)
	if err != nil {
		return nil, err
	}
	r.state.deleted = time.Time{}
	return map[string]any{"ARN": r.state.arn, "Name": r.state.name}, nil
}

func (s *Sim) describeSecret(_ *keyRecord, in map[string]any) (map[string]any, error) {
	st, err := s.view(in)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"ARN": st.arn, "Name": st.name, "CreatedDate": st.created, "LastChangedDate": st.changed}
	stages := map[string]any{}
	for id := range st.versions {
		if l := st.labelsOf(id); len(l) > 0 {
			stages[id] = l
		}
	}
	if len(stages) > 0 {
		out["VersionIdsToStages"] = stages
	}
	if !st.read.IsZero() {
		out["LastAccessedDate"] = st.read.UTC().Truncate(24 * time.Hour)
	}
	if !st.deleted.IsZero() {
		out["DeletedDate"] = st.deleted
	}
	for f, text := range map[string]string{"Description": st.description, "KmsKeyId": st.kms, "OwningService": st.owner, "RotationLambdaARN": st.lambda} {
		if text != "" {
			out[f] = text
		}
	}
	if st.lambda != "" {
		out["RotationEnabled"] = st.rotates
	}
	if st.rules != nil {
		out["RotationRules"] = st.rules
	}
	return out, nil
}

func (s *Sim) getSecretValue(_ *keyRecord, in map[string]any) (map[string]any, error) {
	st, err := s.view(in)
	if err != nil {
		return nil, err
	}
	if !st.deleted.IsZero() {
		return nil, refuse("InvalidRequestException", "You can't perform this operation on the secret because it was marked for deletion.")
	}
	id, byID := in["VersionId"].(string)
	stage, byStage := in["VersionStage"].(string)
	if !byID && !byStage {
		stage, byStage = labelCurrent, true
	}
	if byStage {
		labelled := st.labels[stage]
		if byID && labelled != id {
			return nil, refuse("InvalidRequestException", "You provided a VersionStage that is not associated to the provided VersionId.")
		}
		if id = labelled; id == "" {
			return nil, notFound(" value for staging label: " + stage)
		}
	}
	v := st.versions[id]
	if v.value == nil {
		return nil, notFound(" value for VersionId: " + id)
	}
	if r, err := s.find(in); err == nil {
		r.state.read = s.now()
	}
	out := map[string]any{"ARN": st.arn, "Name": st.name, "VersionId": id, "CreatedDate": v.created}
	maps.Copy(out, v.value)
	if l := st.labelsOf(id); len(l) > 0 {
		out["VersionStages"] = l
	}
	return out, nil
}

func (s *Sim) putSecretValue(_ *keyRecord, in map[string]any) (map[string]any, error) {
	r, err := s.writable(in)
	if err != nil {
		return nil, err
	}
	value := valueOf(in)
	if len(value) != 1 {
		return nil, refuse("InvalidParameterException", "You must provide either SecretString or SecretBinary.")
	}
	id := token(in)
	stages, given := in["VersionStages"].([]any)
	if !given {
		stages = []any{labelCurrent}
	}
	if err := s.newVersion(r, id, value, stages); err != nil {
		return nil, err
	}
	out := map[string]any{"ARN": r.state.arn, "Name": r.state.name, "VersionId": id}
	if l := r.state.labelsOf(id); len(l) > 0 {
		out["VersionStages"] = l
	}
	return out, nil
}

// newVersion adds a version, once: the same token with the same value does nothing.
func (s *Sim) newVersion(r *secretRecord, id string, value map[string]any, stages []any) error {
	if old, ok := r.state.versions[id]; ok && old.value != nil {
		if maps.Equal(old.value, value) {
			return nil
		}
		return refuse("ResourceExistsException", "You can't use ClientRequestToken %s because that value is already in use for a version of secret %s.", id, r.state.arn)
	}
	now := s.now()
	kept := maps.Clone(r.state.versions)
	for _, old := range r.state.versions {
		if len(kept) >= maxVersions && len(r.state.labelsOf(old.id)) == 0 && now.Sub(old.created) >= youngVersion {
			delete(kept, old.id)
		}
	}
	if len(kept) >= maxVersions {
		return refuse("LimitExceededException", "You have reached the maximum number of versions for this secret.")
	}
	s.write(r, func(st *secretState) {
		st.versions = kept
		if st.labels[labelCurrent] == "" && !slices.Contains(stages, any(labelCurrent)) {
			stages = append(slices.Clone(stages), any(labelCurrent))
		}
		st.versions[id] = secretVersion{id, value, now}
		for _, l := range stages {
			st.move(l.(string), id)
		}
	})
	return nil
}

func (s *Sim) updateSecret(_ *keyRecord, in map[string]any) (map[string]any, error) {
	r, err := s.writable(in)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"ARN": r.state.arn, "Name": r.state.name}
	id, value := token(in), valueOf(in)
	if len(value) == 1 {
		if _, ok := r.state.versions[id]; ok {
			return nil, refuse("ResourceExistsException", "You can't use ClientRequestToken %s because that value is already in use for a version of secret %s.", id, r.state.arn)
		}
		if err := s.newVersion(r, id, value, []any{labelCurrent}); err != nil {
			return nil, err
		}
		out["VersionId"] = id
	}
	s.write(r, func(st *secretState) {
		if d, ok := in["Description"].(string); ok {
			st.description = d
		}
		if k, ok := in["KmsKeyId"].(string); ok {
			st.kms = k
		}
	})
	return out, nil
}

// updateSecretVersionStage compares and swaps: what it compares is the truth, not what
// reads see. Only the version that it moves to may be not found yet.
func (s *Sim) updateSecretVersionStage(_ *keyRecord, in map[string]any) (map[string]any, error) {
	r, err := s.writable(in)
	if err != nil {
		return nil, err
	}
	label := in["VersionStage"].(string)
	to, moves := in["MoveToVersionId"].(string)
	from, removes := in["RemoveFromVersionId"].(string)
	has := r.state.labels[label]
	switch {
	case !moves && !removes:
		return nil, refuse("InvalidParameterException", "You must specify MoveToVersionId, RemoveFromVersionId, or both.")
	case !moves && label == labelCurrent:
		return nil, refuse("InvalidParameterException", "You can only move staging label AWSCURRENT to a different secret version. It can't be completely removed.")
	}
	for _, id := range []string{from, to} {
		if _, ok := r.state.versions[id]; id != "" && !ok {
			return nil, notFound(" value for VersionId: " + id)
		}
	}
	if moves {
		seen, err := s.view(in)
		if err != nil {
			return nil, err
		}
		if _, ok := seen.versions[to]; !ok {
			return nil, notFound(" value for VersionId: " + to)
		}
	}
	switch {
	case removes && has != from:
		return nil, refuse("InvalidParameterException", "The parameter RemoveFromVersionId is not valid. Staging label %s is not attached to version %s.", label, from)
	case !removes && has != "" && has != to:
		return nil, refuse("InvalidParameterException", "The parameter RemoveFromVersionId can't be empty. Staging label %s is currently attached to version %s, so you must explicitly reference that version in RemoveFromVersionId.", label, has)
	}
	s.write(r, func(st *secretState) {
		if moves {
			st.move(label, to)
		} else {
			delete(st.labels, label)
		}
	})
	return map[string]any{"ARN": r.state.arn, "Name": r.state.name}, nil
}

func (s *Sim) listSecretVersionIDs(_ *keyRecord, in map[string]any) (map[string]any, error) {
	st, err := s.view(in)
	if err != nil {
		return nil, err
	}
	limit, ok := in["MaxResults"].(int)
	if !ok {
		limit = 100
	}
	all, _ := in["IncludeDeprecated"].(bool)
	var entries []any
	for _, id := range slices.Sorted(maps.Keys(st.versions)) {
		labels := st.labelsOf(id)
		if len(labels) == 0 && !all {
			continue
		}
		e := map[string]any{"VersionId": id, "CreatedDate": st.versions[id].created}
		if len(labels) > 0 {
			e["VersionStages"] = labels
		}
		entries = append(entries, e)
	}
	start := 0
	if next, ok := in["NextToken"].(string); ok {
		if start, err = strconv.Atoi(next); err != nil || start < 0 || start > len(entries) {
			return nil, refuse("InvalidNextTokenException", "The NextToken value is invalid.")
		}
	}
	end := min(len(entries), start+limit)
	out := map[string]any{"ARN": st.arn, "Name": st.name, "Versions": append([]any{}, entries[start:end]...)}
	if end < len(entries) {
		out["NextToken"] = strconv.Itoa(end)
	}
	return out, nil
}

func (s *Sim) rotateSecret(_ *keyRecord, in map[string]any) (map[string]any, error) {
	r, err := s.writable(in)
	if err != nil {
		return nil, err
	}
	lambda, _ := in["RotationLambdaARN"].(string)
	if lambda == "" {
		lambda = r.state.lambda
	}
	if lambda == "" {
		return nil, refuse("InvalidRequestException", "No Lambda rotation function ARN is associated with this secret.")
	}
	if p := r.state.labels[labelPending]; p != "" && p != r.state.labels[labelCurrent] {
		return nil, refuse("InvalidRequestException", "A previous rotation isn't complete. That rotation will be reattempted.")
	}
	id := token(in)
	now := s.now()
	s.write(r, func(st *secretState) {
		st.lambda, st.rotates = lambda, true
		if rules, ok := in["RotationRules"].(map[string]any); ok {
			st.rules = rules
		}
		if at, given := in["RotateImmediately"].(bool); !given || at {
			st.versions[id] = secretVersion{id: id, created: now}
			st.move(labelPending, id)
		}
	})
	return map[string]any{"ARN": r.state.arn, "Name": r.state.name, "VersionId": id}, nil
}

func (s *Sim) cancelRotateSecret(_ *keyRecord, in map[string]any) (map[string]any, error) {
	r, err := s.writable(in)
	if err != nil {
		return nil, err
	}
	s.write(r, func(st *secretState) { st.rotates = false })
	return map[string]any{"ARN": r.state.arn, "Name": r.state.name}, nil
}
