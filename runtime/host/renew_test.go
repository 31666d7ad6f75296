package host_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/runtime/settings"
)

// folder is a sidecar's resource folder, one document a file.
type folder struct {
	*kit
	dir string
}

// watched starts a sidecar that watches a folder with the documents, by their names.
func watched(t *testing.T, config string, docs map[string]string) *folder {
	t.Helper()
	f := &folder{newKit(t, ""), t.TempDir()}
	for name, doc := range docs {
		f.put(t, name, doc)
	}
	f.o.Settings.ResourcesPaths = []string{f.dir}
	res, err := settings.LoadResources(f.o.Settings.ResourcesPaths, settings.Selection{AppID: "app"})
	if err != nil {
		t.Fatal(err)
	}
	f.o.Resources = res
	if config != "" {
		f.o.Config = &settings.Configuration{Components: &settings.ComponentRules{Deny: []string{config}}}
	}
	f.start()
	f.ready(t)
	t.Cleanup(func() {
		f.end()
		if err := f.wait(t); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return f
}

func (f *folder) put(t *testing.T, name, doc string) {
	t.Helper()
	tmp := filepath.Join(t.TempDir(), "new")
	if err := os.WriteFile(tmp, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(f.dir, name+".yaml")); err != nil {
		t.Fatal(err)
	}
}

func (f *folder) remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(f.dir, name+".yaml")); err != nil {
		t.Fatal(err)
	}
}

// after waits for a line behind the last one that mark named.
func (f *folder) after(t *testing.T, mark int, line string) {
	t.Helper()
	until(t, line, func() bool { return slices.Contains(f.all()[mark:], line) })
}

func vaultDoc(name, token string) string {
	return locked(name, "secretstores.good", "{name: token, value: "+token+"}", "")
}

const own = "{name: token, secretKeyRef: {name: own}}"

// A secret store that changes takes its place, and what has secrets of it is opened anew, also
// behind another store.
func TestSecretStoresChangeLive(t *testing.T) {
	f := watched(t, "", map[string]string{"inner": vaultDoc("inner", "one"), "outer": locked("outer", "secretstores.good", own, "inner"),
		"near": locked("near", "state.locked", own, "inner"), "far": locked("far", "state.locked", own, "outer"), "apart": store("apart", "state.good"),
		"ext": "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {name: ext}\nspec: {baseUrl: 'http://x', headers: [{name: X, secretKeyRef: {name: own}}]}\nauth: {secretStore: inner}\n"})
	for _, line := range []string{"open near with one", "open far with one"} {
		if !f.has(line) {
			t.Fatalf("at the start: no %q in %v", line, f.all())
		}
	}
	secret := func(store string) string {
		v, err := f.edges.services.Secret.Get(context.Background(), store, "own", nil)
		if err != nil {
			return err.Error()
		}
		return v["own"]
	}
	mark := len(f.all())
	f.put(t, "inner", vaultDoc("inner", "two"))
	for _, line := range []string{"open inner with two", "open outer with two", "open near with two", "open far with two", "close inner", "close outer", "close near", "close far"} {
		f.after(t, mark, line)
	}
	until(t, "the endpoint", func() bool { return f.logged("HTTPEndpoint updated: ext") })
	order(t, f.all()[mark:], "open inner with two", "ping inner", "open outer with two", "ping outer", "open far with two")
	if got := secret("inner") + secret("outer"); got != "twotwo" {
		t.Errorf("the app reads %s", got)
	}
	if slices.Contains(f.all()[mark:], "open apart") {
		t.Error("a component without secrets was opened anew")
	}

	// One that does not work leaves the old one, and what depends on it, alone.
	mark = len(f.all())
	f.put(t, "inner", store("inner", "secretstores.down"))
	until(t, "the report", func() bool { return f.logged("the changed secret store is not used") })
	if got := secret("inner"); got != "two" {
		t.Errorf("after a change that does not work the app reads %s", got)
	}
	f.put(t, "inner", vaultDoc("inner", "three"))
	f.after(t, mark, "open far with three")
	f.after(t, mark, "open near with three")
	if n := strings.Count(strings.Join(f.all()[mark:], "\n"), "open near with"); n != 1 {
		t.Errorf("a component was opened %d times, want once", n)
	}

	// A component and its store that change together.
	mark = len(f.all())
	f.put(t, "late", vaultDoc("late", "four"))
	f.put(t, "near", locked("near", "state.locked", own, "late"))
	f.after(t, mark, "open near with four")

	// Stores that need one another: told, and both stay.
	mark = len(f.all())
	f.put(t, "late", locked("late", "secretstores.good", own, "outer"))
	f.after(t, mark, "open late with three")
	f.put(t, "inner", locked("inner", "secretstores.good", own, "late"))
	until(t, "the circle", func() bool { return f.logged("secret stores need one another to start") })
	f.put(t, "inner", vaultDoc("inner", "five"))
	f.after(t, mark, "open near with five")

	// One that goes.
	f.remove(t, "outer")
	until(t, "the warning", func() bool { return f.logged("still refer to a secret store that is gone") })
	if got := secret("outer"); !strings.Contains(got, "not configured") {
		t.Errorf("a store that is gone: %s", got)
	}
	if f.logged("\"hush\"") {
		t.Error("a secret is in the log")
	}
}

// Names change their block: what was there goes first.
func TestSecretStoresBecomeOthers(t *testing.T) {
	f := watched(t, "", map[string]string{"a": vaultDoc("a", "one"), "b": store("b", "state.good")})
	secrets, states := f.edges.services.Secret, f.edges.services.State
	isStore := func(name string) bool { return states.Check(name) == nil }
	isSecret := func(name string) bool {
		_, err := secrets.Get(context.Background(), name, "own", nil)
		return err == nil
	}
	f.put(t, "a", store("a", "state.good"))
	until(t, "a is a state store", func() bool { return isStore("a") && !isSecret("a") })
	f.put(t, "b", vaultDoc("b", "two"))
	until(t, "b is a secret store", func() bool { return isSecret("b") && !isStore("b") })
	f.put(t, "a", vaultDoc("a", "three"))
	until(t, "a is a secret store again", func() bool { return isSecret("a") && !isStore("a") })
}

// What the configuration refuses does not come live either.
func TestDeniedSecretStoreLive(t *testing.T) {
	f := watched(t, "secretstores.good", map[string]string{"b": store("b", "state.good")})
	f.put(t, "a", vaultDoc("a", "one"))
	until(t, "the refusal", func() bool { return f.logged("component 'a' cannot be loaded") })
	if f.has("open a with one") {
		t.Error("a denied secret store was opened")
	}
}

// HTTP endpoints come, change and go.
func TestEndpointsChangeLive(t *testing.T) {
	endpoint := func(name, entry string) string {
		return "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {name: " + name + "}\nspec: {baseUrl: 'http://x', headers: [" + entry + "]}\nauth: {secretStore: none}\n"
	}
	f := watched(t, "", map[string]string{"one": endpoint("one", "{name: X, value: y}")})
	names := func() string { return strings.Join(f.edges.services.Invoke.Endpoints(), " ") }
	if names() != "one" {
		t.Fatalf("at the start: %s", names())
	}
	f.put(t, "two", endpoint("two", "{name: X, value: y}"))
	until(t, "another", func() bool { return names() == "one two" })
	f.put(t, "two", endpoint("two", "{name: X, secretKeyRef: {name: s}}"))
	until(t, "the report", func() bool { return f.logged("the changed HTTPEndpoint is not used") })
	f.remove(t, "one")
	until(t, "one less", func() bool { return names() == "two" })
}
