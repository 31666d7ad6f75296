package mesh

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dapr/go-sdk/client"
	"github.com/jackc/pgx/v5"

	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/servers"
)

// Locks in Redis are the app's, of every replica, in Dapr's form, and outlive a sidecar.
func TestLocksInRedis(t *testing.T) {
	srv := servers.StartRedis(t)
	mesh := harness.NewMesh(t)
	files := map[string]string{"l.yaml": component("lockstore", "lock.redis", "redisHost", srv.Addr)}
	one := mesh.Start(harness.Options{AppID: "shop", Files: files})
	two := mesh.Start(harness.Options{AppID: "shop", Files: files})
	try := func(c client.Client, owner string) bool {
		t.Helper()
		got, err := c.TryLockAlpha1(t.Context(), "lockstore", &client.LockRequest{LockOwner: owner, ResourceID: "order/1", ExpiryInSeconds: 600})
		if err != nil {
			t.Fatal(err)
		}
		return got.Success
	}
	a, b := sdk(t, one), sdk(t, two)
	if !try(a, "a") || try(a, "a") || try(b, "b") {
		t.Fatal("the first is to have the lock, and nobody after it")
	}
	if owner, err := servers.RedisCommand(srv.Port, "GET", "lock||shop||order/1"); err != nil || owner != "a" {
		t.Errorf("stored is %q, %v; want the owner", owner, err)
	}
	one.Kill()
	srv.Kill()
	srv.Restart(t)
	eventually(t, 20*time.Second, "the lock is still there", func() bool {
		got, err := b.TryLockAlpha1(t.Context(), "lockstore", &client.LockRequest{LockOwner: "b", ResourceID: "order/1", ExpiryInSeconds: 600})
		if err == nil && got.Success {
			t.Fatal("a lock was granted twice")
		}
		return err == nil
	})
	for _, u := range []struct{ owner, want string }{{"b", "LOCK_BELONGS_TO_OTHERS"}, {"a", "SUCCESS"}, {"a", "LOCK_DOES_NOT_EXIST"}} {
		got, err := b.UnlockAlpha1(t.Context(), "lockstore", &client.UnlockRequest{LockOwner: u.owner, ResourceID: "order/1"})
		if err != nil || got.Status != u.want {
			t.Fatalf("unlock by %s: %+v, %v; want %s", u.owner, got, err, u.want)
		}
	}
}

// Configuration in Redis and PostgreSQL reaches apps over streams, and neither the death of a
// server nor a cut connection ends them.
func TestConfigurationInProducts(t *testing.T) {
	srv, pg := servers.StartRedis(t), servers.Postgres(t)
	relay := servers.NewRelay(t, pg.Port)
	address := func(port int) string {
		return fmt.Sprintf("host=127.0.0.1 port=%d dbname=postgres user=postgres password='%s' sslmode=disable", port, strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(servers.SQLPassword))
	}
	db, err := pgx.Connect(t.Context(), address(pg.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(t.Context())
	put := map[string]func(value string){
		"inredis": func(value string) {
			t.Helper()
			if _, err := servers.RedisCommand(srv.Port, "SET", "limit", value+"||v"+value); err != nil {
				t.Fatal(err)
			}
		},
		"inpostgres": func(value string) {
			t.Helper()
			if _, err := db.Exec(t.Context(), `INSERT INTO settings SELECT 'limit', $1::text, 'v'||$1::text, NULL`, value); err != nil {
				t.Fatal(err)
			}
		}}
	if _, err := db.Exec(t.Context(), `CREATE TABLE settings (key varchar NOT NULL, value varchar NOT NULL, version varchar NOT NULL, metadata json);
		CREATE FUNCTION settings_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			PERFORM pg_notify('settings', json_build_object('data', json_build_object('key', NEW.key, 'value', NEW.value, 'version', NEW.version))::text);
			RETURN NEW; END $$;
		CREATE TRIGGER settings_trigger AFTER INSERT OR UPDATE ON settings FOR EACH ROW EXECUTE FUNCTION settings_changed();`); err != nil {
		t.Fatal(err)
	}
	for _, p := range put {
		p("1")
	}
	s := harness.NewMesh(t).Start(harness.Options{AppID: "shop", Files: map[string]string{
		"r.yaml": component("inredis", "configuration.redis", "redisHost", srv.Addr),
		"p.yaml": component("inpostgres", "configuration.postgresql", "host", "127.0.0.1", "port", fmt.Sprint(relay.Port), "database", "postgres", "user", "postgres",
			"password", servers.SQLPassword, "table", "settings", "notifyChannel", "settings")}})
	c := sdk(t, s)
	var told = map[string]*updates{}
	for store := range put {
		one, err := c.GetConfigurationItem(t.Context(), store, "limit")
		if err != nil || one.Value != "1" || one.Version != "v1" {
			t.Fatalf("%s: GetConfigurationItem: %+v, %v", store, one, err)
		}
		told[store] = &updates{}
		if _, err := c.SubscribeConfigurationItems(t.Context(), store, []string{"limit", "other"}, told[store].handle); err != nil {
			t.Fatalf("%s: %v", store, err)
		}
		put[store]("2")
		eventually(t, 20*time.Second, store+": the change is told", func() bool { return told[store].has("limit=2") })
	}
	srv.Kill()
	srv.Restart(t)
	relay.Cut()
	for store := range put {
		put[store]("3")
		eventually(t, 20*time.Second, store+": the change after the cut is told", func() bool { return told[store].has("limit=3") })
		if got := told[store].all(); len(got) != 2 {
			t.Errorf("%s: told %q, want each change once", store, got)
		}
	}
}
