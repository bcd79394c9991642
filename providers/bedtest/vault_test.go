package bedtest

import (
	"bytes"
	"errors"
	"net/http"
	"testing"
)

func TestVaultWhenSealedAndUnsealed(t *testing.T) {
	v := NewVault(t)
	mount := v.Mount(t, "kv", map[string]string{"version": "2"})
	v.Write(t, mount+"/data/a", map[string]any{"data": map[string]string{"k": "a-value-that-is-hashed"}})
	v.Seal(t)
	err := v.Ask(http.MethodGet, mount+"/data/a", nil, nil)
	if e, ok := errors.AsType[*VaultError](err); !ok || e.Status != http.StatusServiceUnavailable {
		t.Errorf("a sealed Vault: %v, want 503", err)
	}
	v.Unseal(t)
	if got := v.Read(t, mount+"/data/a")["data"].(map[string]any)["k"]; got != "a-value-that-is-hashed" {
		t.Errorf("after the seal the value is %v", got)
	}
	log := v.AuditLog(t)
	if !bytes.Contains(log, []byte(mount+"/data/a")) {
		t.Error("the audit log does not have the path that was written")
	}
	if bytes.Contains(log, []byte("a-value-that-is-hashed")) {
		t.Error("the audit log has the value in plain text")
	}
}

func TestVaultWhenRestarted(t *testing.T) {
	v := NewVault(t)
	v.Restart(t)
	v.Write(t, "secret/data/a", map[string]any{"data": map[string]string{"k": "v"}})
	v.Seal(t)
	v.Unseal(t)
	if got := v.Read(t, "secret/data/a")["data"].(map[string]any)["k"]; got != "v" {
		t.Errorf("after restart, seal and unseal the value is %v", got)
	}
}

func TestVaultTLS(t *testing.T) {
	v := VaultTLS(t)
	if v.CA == "" || v.Address[:8] != "https://" {
		t.Fatalf("address %s", v.Address)
	}
	v.Read(t, "sys/mounts/secret")
}
