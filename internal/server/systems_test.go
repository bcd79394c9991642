package server

import (
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// Systems are made, shown, listed page by page, changed and removed by admins; what is
// shown never has the login.
func TestSystemsWhenConfigured(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		ctx := t.Context()
		targets, stores := b.targets(b.admin), b.stores(b.admin)

		kinds, err := targets.ListTargetKinds(ctx, connect.NewRequest(&rotundav1.ListTargetKindsRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, k := range kinds.Msg.GetKinds() {
			names = append(names, k.GetName())
			if k.GetName() == "memory" && (len(k.GetLogin()) != 3 || k.GetParams()[0].GetName() != "account" || !cmp.Equal(k.GetStrategies(), []string{"dual", "alternate", "replace"})) {
				t.Errorf("the kind memory is shown as %v", k)
			}
		}
		if !cmp.Equal(names, []string{"generated", "memory"}) {
			t.Errorf("kinds of targets are %q", names)
		}
		storeKinds, err := stores.ListStoreKinds(ctx, connect.NewRequest(&rotundav1.ListStoreKindsRequest{}))
		if err != nil || len(storeKinds.Msg.GetKinds()) != 2 || storeKinds.Msg.GetKinds()[1].GetWritesPerRotation() != 3 || !storeKinds.Msg.GetKinds()[1].GetStages() {
			t.Errorf("kinds of stores: %v, %v", storeKinds, err)
		}

		make := func(name, key string) (*rotundav1.System, error) {
			res, err := targets.CreateTarget(ctx, withKey(&rotundav1.CreateTargetRequest{
				Name: name, Kind: "memory", Settings: map[string]string{"address": "db.test"}, Login: map[string]string{"password": "hush-hush", "pin": "1234"},
			}, key))
			if err != nil {
				return nil, err
			}
			return res.Msg.GetTarget(), nil
		}
		made, err := make("one", "key-1")
		if err != nil {
			t.Fatal(err)
		}
		want := &rotundav1.System{Name: "one", Kind: "memory", Settings: map[string]string{"address": "db.test"}, HasLogin: true, CreatedAt: timestamp(epoch), Since: timestamp(epoch), Version: 1}
		if d := cmp.Diff(want, made, protocmp.Transform()); d != "" {
			t.Errorf("made (-want +got):\n%s", d)
		}
		if again, err := make("one", "key-1"); err != nil || cmp.Diff(made, again, protocmp.Transform()) != "" {
			t.Errorf("the same request again: %v, %v", again, err)
		}
		_, err = make("one", "key-2")
		wantProblem(t, err, connect.CodeAlreadyExists, "target_exists")
		_, err = targets.CreateTarget(ctx, withKey(&rotundav1.CreateTargetRequest{
			Name: "one", Kind: "memory", Settings: map[string]string{"address": "db.test"}, Login: map[string]string{"password": "another", "pin": "1234"},
		}, "key-1"))
		wantProblem(t, err, connect.CodeInvalidArgument, "idempotency_key_reused")
		for _, name := range []string{"three", "two"} {
			if _, err := make(name, ""); err != nil {
				t.Fatal(err)
			}
		}
		names = nil
		for page := ""; ; {
			list, err := targets.ListTargets(ctx, connect.NewRequest(&rotundav1.ListTargetsRequest{PageSize: 2, PageToken: page}))
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range list.Msg.GetTargets() {
				names = append(names, x.GetName())
			}
			if page = list.Msg.GetNextPageToken(); page == "" {
				break
			}
		}
		if d := cmp.Diff([]string{"one", "three", "two"}, names); d != "" {
			t.Errorf("the pages together (-want +got):\n%s", d)
		}
		for _, page := range []string{"!", "b25l%", "T05F"} {
			_, err := targets.ListTargets(ctx, connect.NewRequest(&rotundav1.ListTargetsRequest{PageToken: page}))
			wantProblem(t, err, connect.CodeInvalidArgument, "bad_page_token")
		}

		// A change needs the version that was seen, and a login must not follow an address.
		update := func(version int64, address string, login map[string]string) (*rotundav1.System, error) {
			res, err := targets.UpdateTarget(ctx, connect.NewRequest(&rotundav1.UpdateTargetRequest{Target: "one", Version: version, Settings: map[string]string{"address": address}, Login: login}))
			if err != nil {
				return nil, err
			}
			return res.Msg.GetTarget(), nil
		}
		_, err = update(2, "db.test", nil)
		wantProblem(t, err, connect.CodeAborted, "version_changed")
		_, err = update(1, "attacker.test", nil)
		wantProblem(t, err, connect.CodeInvalidArgument, "login_required")
		changed, err := update(1, "other.test", map[string]string{"password": "hush-again"})
		if err != nil || changed.GetVersion() != 2 || changed.GetSettings()["address"] != "other.test" || !changed.GetHasLogin() {
			t.Errorf("changed: %v, %v", changed, err)
		}
		got, err := targets.GetTarget(ctx, connect.NewRequest(&rotundav1.GetTargetRequest{Target: "one"}))
		if err != nil || cmp.Diff(changed, got.Msg.GetTarget(), protocmp.Transform()) != "" {
			t.Errorf("read back: %v, %v", got, err)
		}
		tested, err := targets.TestTarget(ctx, connect.NewRequest(&rotundav1.TestTargetRequest{Target: "one"}))
		if err != nil || !tested.Msg.GetFindings()[0].GetOk() {
			t.Errorf("tested: %v, %v", tested, err)
		}
		if _, err := update(2, "other.test", map[string]string{"password": refusedLogin}); err != nil {
			t.Fatal(err)
		}
		tested, err = targets.TestTarget(ctx, connect.NewRequest(&rotundav1.TestTargetRequest{Target: "one"}))
		if err != nil || tested.Msg.GetFindings()[0].GetOk() || !strings.Contains(tested.Msg.GetFindings()[0].GetDetail(), "the login is not accepted: give another one") || strings.Contains(tested.Msg.String(), refusedLogin) {
			t.Errorf("tested with a login that is refused: %v, %v", tested, err)
		}

		b.system(t)
		b.credential(t, "orders")
		_, err = targets.DeleteTarget(ctx, connect.NewRequest(&rotundav1.DeleteTargetRequest{Target: "mem"}))
		wantProblem(t, err, connect.CodeFailedPrecondition, "is_used")
		if _, err := targets.DeleteTarget(ctx, connect.NewRequest(&rotundav1.DeleteTargetRequest{Target: "one"})); err != nil {
			t.Error(err)
		}
		_, err = targets.GetTarget(ctx, connect.NewRequest(&rotundav1.GetTargetRequest{Target: "one"}))
		wantProblem(t, err, connect.CodeNotFound, "target_not_found")

		// Stores are the same, and have paths.
		store, err := stores.CreateStore(ctx, connect.NewRequest(&rotundav1.CreateStoreRequest{Name: "shelf", Kind: "memory", Settings: map[string]string{"address": "kv.test"}}))
		if err != nil || store.Msg.GetStore().GetHasLogin() {
			t.Fatalf("%v, %v", store, err)
		}
		if res, err := stores.TestStore(ctx, connect.NewRequest(&rotundav1.TestStoreRequest{Store: "shelf", Path: "kv/orders"})); err != nil || len(res.Msg.GetFindings()) == 0 || !res.Msg.GetFindings()[0].GetOk() {
			t.Errorf("tested: %v, %v", res, err)
		}
		if res, err := stores.UpdateStore(ctx, connect.NewRequest(&rotundav1.UpdateStoreRequest{Store: "shelf", Version: 1, LoginCredential: "orders"})); err != nil || res.Msg.GetStore().GetLoginCredential() != "orders" {
			t.Errorf("with a login that rotates: %v, %v", res, err)
		}
		list, err := stores.ListStores(ctx, connect.NewRequest(&rotundav1.ListStoresRequest{}))
		if err != nil || len(list.Msg.GetStores()) != 2 {
			t.Errorf("stores: %v, %v", list, err)
		}
		if res, err := stores.GetStore(ctx, connect.NewRequest(&rotundav1.GetStoreRequest{Store: "shelf"})); err != nil || res.Msg.GetStore().GetVersion() != 2 {
			t.Errorf("store: %v, %v", res, err)
		}
		if _, err := stores.DeleteStore(ctx, connect.NewRequest(&rotundav1.DeleteStoreRequest{Store: "shelf"})); err != nil {
			t.Error(err)
		}
	})
}
