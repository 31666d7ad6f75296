package host_test

import (
	"context"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/host"
	"github.com/mecha-project/mecha/runtime/settings"
)

// locked is a component that needs a secret: entry is a metadata entry, from where auth says.
func locked(name, typ, entry, from string, more ...string) string {
	out := store(name, typ, append([]string{"  metadata: [" + entry + "]"}, more...)...)
	if from != "" {
		out += "\nauth: {secretStore: " + from + "}"
	}
	return out
}

const token = "{name: token, secretKeyRef: {name: db}}"

// Stores come first, whatever the order of the documents, and those that need another after it.
func TestSecretStoresComeFirst(t *testing.T) {
	k := newKit(t, yaml(locked("db", "state.locked", "{name: token, secretKeyRef: {name: db, key: user}}, {name: other, secretKeyRef: {name: db}}", "outer"),
		locked("outer", "secretstores.good", token, "inner"),
		store("inner", "secretstores.good"),
		strings.Replace(locked("again", "state.locked", token, "outer"), "name: again", "name: again\n  namespace: prod", 1)))
	k.start()
	k.ready(t)
	k.end()
	if err := k.wait(t); err != nil {
		t.Fatal(err)
	}
	all := k.all()
	order(t, all, "open inner with ", "ping inner", "read db of inner map[]", "open outer with hush", "ping outer", "open db with me", "close db", "close inner")
	order(t, all, "ping outer", "read db of outer map[namespace:prod]", "open again with hush")
	reads := 0
	for _, line := range all {
		if line == "read db of outer map[]" {
			reads++
		}
	}
	if reads != 1 {
		t.Errorf("a component's secret is read %d times, want once", reads)
	}
	if k.logged("hush") {
		t.Error("the secret is in the log")
	}
}

// A component that cannot have its secret does not come up without it.
func TestComponentsWithoutTheirSecrets(t *testing.T) {
	const vault = "the secret store did not start: "
	good := store("vault", "secretstores.good")
	for name, tt := range map[string]struct {
		entry, from string
		stores      []string
		want        string // what is said of the reference
	}{
		"no store at all":    {token, "vault", nil, `secret "db" (key "db") of secret store "vault" cannot be used: no such secret store is loaded; there is none`},
		"another store":      {token, "valut", []string{good}, `secret "db" (key "db") of secret store "valut" cannot be used: no such secret store is loaded; there are vault`},
		"no store named":     {token, "", []string{good}, `of secret store "" cannot be used: auth.secretStore does not say which store that is; there are vault`},
		"a state store":      {token, "other", []string{good}, `of secret store "other" cannot be used: no such secret store is loaded`},
		"no secret":          {"{name: token, secretKeyRef: {name: x, key: z}}", "vault", []string{good}, `secret "x" (key "z") of secret store "vault" cannot be used: no secret x`},
		"no key":             {"{name: token, secretKeyRef: {name: db, key: password}}", "vault", []string{good}, `secret "db" (key "password") of secret store "vault" cannot be used: the secret has no key "password"`},
		"an empty secret":    {"{name: token, secretKeyRef: {name: empty}}", "vault", []string{good}, `secret "empty" (key "empty") of secret store "vault" cannot be used: it is empty or does not exist`},
		"a refusal":          {"{name: token, secretKeyRef: {name: broken}}", "vault", []string{good}, `secret "broken" (key "broken") of secret store "vault" cannot be used: permission denied`},
		"a store that fails": {token, "vault", []string{store("vault", "secretstores.down", "  ignoreErrors: true")}, vault + "process component vault error: [INIT_COMPONENT_FAILURE]: initialization error occurred for vault (secretstores.down/v1): dial vault:1: refused"},
		"stores in a circle": {token, "a", []string{locked("a", "secretstores.good", token, "b", "  ignoreErrors: true"), locked("b", "secretstores.good", token, "a", "  ignoreErrors: true")},
			"secret stores need one another to start: a, b, a"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, ignored := range []bool{false, true} {
				var more []string
				if ignored {
					more = append(more, "  ignoreErrors: true")
				}
				k := newKit(t, yaml(append([]string{locked("db", "state.locked", tt.entry, tt.from, more...), store("other", "state.good")}, tt.stores...)...))
				k.start()
				if ignored {
					k.ready(t)
					if !k.logged(strings.ReplaceAll(tt.want, `"`, `\"`)) {
						t.Errorf("the log does not say %s", tt.want)
					}
					k.end()
				}
				err := k.wait(t)
				if ignored && err != nil {
					t.Errorf("ignored: %v", err)
				}
				if !ignored && (err == nil || !strings.Contains(err.Error(), tt.want) ||
					!strings.HasPrefix(err.Error(), "process component db error: [INIT_COMPONENT_FAILURE]: initialization error occurred for db (state.locked/v1): test.yaml:")) {
					t.Errorf("got  %v\nwant … %s", err, tt.want)
				}
				for _, line := range k.all() {
					if strings.HasPrefix(line, "open db") {
						t.Errorf("ignored %v: %s", ignored, line)
					}
				}
			}
		})
	}
}

// A value beside the reference is what is used when there is no secret.
func TestAValueBesideTheReference(t *testing.T) {
	k := newKit(t, locked("db", "state.locked", "{name: token, value: written, secretKeyRef: {name: db}}", "vault"))
	k.start()
	k.ready(t)
	k.end()
	if err := k.wait(t); err != nil || !k.has("open db with written") || !k.logged("the value stays as written") {
		t.Errorf("%v, %v", err, k.all())
	}
}

func TestASecretStoreThatFails(t *testing.T) {
	k := newKit(t, yaml(store("vault", "secretstores.down"), store("db", "state.good")))
	k.start()
	err := k.wait(t)
	const want = "process component vault error: [INIT_COMPONENT_FAILURE]: initialization error occurred for vault (secretstores.down/v1): dial vault:1: refused"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if k.has("open db") {
		t.Error("another component was opened all the same")
	}
}

func TestDeniedSecretStore(t *testing.T) {
	k := newKit(t, yaml(store("vault", "secretstores.good"), locked("db", "state.locked", token, "vault", "  ignoreErrors: true")))
	k.o.Config.Components = &settings.ComponentRules{Deny: []string{"secretstores.good"}}
	k.start()
	k.ready(t)
	k.end()
	if err := k.wait(t); err != nil || k.has("ping vault") || !k.logged("component 'vault' cannot be loaded") || !k.logged("no such secret store is loaded") {
		t.Errorf("%v, %v", err, k.all())
	}
}

// HTTP endpoints read their secrets before the APIs open.
func TestEndpointsWithoutTheirSecrets(t *testing.T) {
	endpoint := func(spec string) string {
		return "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {name: ext}\nspec: {baseUrl: 'https://x', " + spec + "}\nauth: {secretStore: vault}"
	}
	for name, tt := range map[string]struct{ spec, want string }{
		"a header":  {"headers: [{name: a, secretKeyRef: {name: x}}]", `http endpoint ext: test.yaml:`},
		"TLS":       {"clientTLS: {rootCA: {secretKeyRef: {name: x}}}", "http endpoint ext: spec.clientTLS.rootCA has no value"},
		"not a PEM": {"clientTLS: {rootCA: {secretKeyRef: {name: db}}}", "http endpoint ext: spec.clientTLS.rootCA: no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(t, yaml(endpoint(tt.spec), store("vault", "secretstores.good")))
			k.start()
			err := k.wait(t)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) || name != "not a PEM" && !strings.Contains(err.Error(), `secret "x" (key "x") of secret store "vault" cannot be used: no secret x`) {
				t.Errorf("got %v, want %s…", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "hush") {
				t.Error("the error holds the secret")
			}
			order(t, k.all(), "open vault with ", "ping vault", "close vault")
		})
	}
}

// What the app may read is limited; what components refer to is not. Stores that were open before
// there was policy are under it too.
func TestSecretsOfTheApp(t *testing.T) {
	const policy = "apiVersion: mecha.io/v1\nkind: TrafficPolicy\nmetadata: {name: guard}\nspec:\n  match: [{kind: secret, dest: vault, op: bulk_get}]\n  authz: {deny: [{name: no-lists, from: app}]}"
	k := newKit(t, yaml(store("vault", "secretstores.good"), locked("db", "state.locked", token, "vault"), policy))
	k.o.Config.Secrets = &settings.Secrets{Scopes: []settings.SecretScope{{StoreName: "vault", DefaultAccess: "deny", AllowedSecrets: []string{"empty"}}}}
	k.o.Secrets = host.NewSecrets(host.SecretsOptions{Settings: k.o.Settings, Config: k.o.Config, Resources: k.o.Resources, Backends: k.o.Backends, Log: k.o.Log})
	early := k.o.Secrets.Expansion(context.Background())
	if v, err := early.Secret(&settings.Component{SecretStore: "vault"}, &settings.SecretRef{Name: "db", Key: "user"}); err != nil || v != "me" {
		t.Fatalf("before the start: %q, %v", v, err)
	}
	// Each place is read once, and the namespace belongs to the place.
	for _, namespace := range []string{"", "prod", "prod"} {
		if _, err := early.Secret(&settings.Component{Resource: settings.Resource{Namespace: namespace}, SecretStore: "vault"}, &settings.SecretRef{Name: "db", Key: "user"}); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(k.all(), ", "); got != "open vault with , ping vault, read db of vault map[], read db of vault map[namespace:prod]" {
		t.Errorf("before the start: %s", got)
	}
	k.start()
	k.ready(t)
	s := k.edges.services.Secret
	if v, err := s.Get(t.Context(), "vault", "empty", nil); err != nil || len(v) != 1 {
		t.Errorf("an allowed secret: %v, %v", v, err)
	}
	if _, err := s.Get(t.Context(), "vault", "db", nil); fault.ReasonOf(err) != fault.ForbiddenSecret {
		t.Errorf("another: %v", err)
	}
	if _, err := s.GetAll(t.Context(), "vault", nil); fault.ReasonOf(err) != fault.PolicyRejected || fault.RuleOf(err) == "" {
		t.Errorf("all: %v (%v)", err, fault.RuleOf(err))
	}
	var kinds []string
	for _, c := range k.edges.services.About.Metadata().Components {
		kinds = append(kinds, c.Name+" "+c.Type)
	}
	if got := strings.Join(kinds, ", "); got != "db state.locked, vault secretstores.good" {
		t.Errorf("components are %s", got)
	}
	k.end()
	if err := k.wait(t); err != nil || !k.has("open db with hush") {
		t.Errorf("%v, %v", err, k.all())
	}
	pings := 0
	for _, line := range k.all() {
		if line == "ping vault" {
			pings++
		}
	}
	if pings != 1 {
		t.Errorf("the store was opened %d times", pings)
	}
}
