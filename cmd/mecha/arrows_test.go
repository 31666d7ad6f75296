package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// rule says which rooms a room may import. Standard library and third-party modules are not
// judged here, except where only lists them.
type rule struct {
	room   string // import path below the module; a trailing /* means each folder below it
	mayUse string // rooms, space separated
	why    string
}

// rules are the arrows of the house, in the order a request walks. docs/design/0001-house.md
// shows the same table to readers.
var rules = []rule{
	{"components/fault", "", "every room speaks of errors, so the vocabulary must not depend on any"},
	{"components/conf", "components/fault", "decoding knows no component"},
	{"components/block", "components/fault components/conf", "a contract that knows a backend is no contract"},
	{"components/block/blocktest", "components/fault components/conf components/block", "a suite that knows a backend tests that backend only"},
	{"components/nats/embedded", "components/fault", "the node is a product of its own; the backend uses it"},
	{"components/sqlstate", "components/fault components/conf components/block", "what SQL backends share knows no product"},
	{"components/sqlbinding", "components/fault components/conf components/block", "what SQL backends share knows no product"},
	{"components/*", "components/fault components/conf components/block components/nats/embedded components/sqlstate components/sqlbinding", "backends translate; what decides is in runtime, and other backends are strangers"},
	{"runtime/call", "components/fault", "the shape of a request depends on nothing it passes through"},
	{"runtime/identity", "components/fault", "who speaks is independent of what is asked"},
	{"runtime/settings", "components/fault components/conf", "reading files opens nothing"},
	{"runtime/telemetry", "components/fault components/conf", "telemetry is handed down, it reaches for nothing"},
	{"runtime/about", "", "edges read it, the host writes it; it knows neither"},
	{"runtime/policy", "runtime/call runtime/identity components/fault components/conf", "policy judges calls, not edges or backends"},
	{"runtime/policy/file", "runtime/policy runtime/policy/breaker runtime/call runtime/settings components/conf", "a source makes snapshots of what it reads; it opens nothing"},
	{"runtime/policy/limit/lru", "", "a table with a bound; its users decide what is in it"},
	{"runtime/policy/*", "runtime/policy/limit/lru", "an algorithm knows no call, and no other algorithm"},
	{"runtime/catalog", "runtime/call runtime/identity components/block components/conf components/fault", "the catalog holds instances of contracts, not of products"},
	{"runtime/catalog/seal", "components/block components/conf components/fault", "it encrypts what a contract carries, whatever the product"},
	{"runtime/app", "runtime/call components/fault", "the app is a callee like any other"},
	{"runtime/pubsub", "runtime/app runtime/call runtime/catalog runtime/identity runtime/pubsub/engine components/block components/fault components/conf", "services decide; edges and backends are others' business"},
	{"runtime/pubsub/engine", "runtime/pubsub/group runtime/pubsub/lane components/block components/fault", "messages go by their partitions, whoever asks for them and under whichever policy"},
	{"runtime/pubsub/engine/sim", "", "it is tests of the engine and nothing else"},
	{"runtime/pubsub/lane", "components/block", "what may be delivered next is a matter of the records alone"},
	{"runtime/pubsub/group", "components/block components/fault", "who owns a partition is between the members and a ledger, whatever is in it"},
	{"runtime/outbox", "runtime/call runtime/catalog runtime/identity runtime/pubsub runtime/state components/block components/fault", "it joins two services so that neither knows the other"},
	{"runtime/state", "runtime/call runtime/catalog runtime/identity components/block components/fault components/conf", "services decide; edges and backends are others' business"},
	{"runtime/secret", "runtime/call runtime/catalog runtime/identity components/block components/fault", "services decide; edges and backends are others' business"},
	{"runtime/cache", "runtime/call runtime/catalog runtime/identity components/block components/fault", "services decide; edges and backends are others' business"},
	{"runtime/lock", "runtime/call runtime/catalog runtime/identity components/block components/fault", "services decide; edges and backends are others' business"},
	{"runtime/crypto", "runtime/call runtime/catalog runtime/identity components/block components/fault", "services decide; edges and backends are others' business"},
	{"runtime/config", "runtime/app runtime/call runtime/catalog runtime/identity components/block components/fault", "services decide; edges and backends are others' business; updates are calls to the app"},
	{"runtime/binding", "runtime/app runtime/call runtime/catalog runtime/identity components/block components/fault", "services decide; edges and backends are others' business; events are calls to the app"},
	{"runtime/invoke", "runtime/call runtime/catalog runtime/identity components/block components/fault", "services decide; peers and endpoints are reached through interfaces the edges implement"},
	{"runtime/host", "runtime/about runtime/app runtime/binding runtime/cache runtime/call runtime/catalog runtime/config runtime/crypto runtime/identity runtime/invoke runtime/lock runtime/outbox runtime/policy runtime/policy/file runtime/pubsub runtime/secret runtime/settings runtime/state runtime/telemetry components/block components/conf components/fault", "the host builds the runtime; edges and backends are handed to it by cmd"},
	{"api/mecha/v1", "", "generated stubs, for the house and for its callers"},
	{"api/apierr", "components/fault", "one table for all wires"},
	{"api/h1", "runtime/call components/fault", "a wire carries requests and knows no API"},
	{"api/wire", "", "what both multiplexed wires need and none of their frames"},
	{"api/h2", "api/wire runtime/call components/fault", "a wire carries requests and knows no API"},
	{"api/link", "api/wire components/fault", "a wire carries bytes and knows no API"},
	{"api/nativeapi", "api/apierr api/mecha/v1 runtime/cache runtime/pubsub/engine runtime/state components/block components/fault", "it gives the services the form of the stubs; gRPC and HTTP carry them"},
	{"api/adminapi", "runtime/telemetry components/fault", "the admin ports show what they are handed"},
	{"api/httpapi/middleware", "api/httpapi api/apierr runtime/call components/conf components/fault", "middleware is part of the HTTP edge"},
	{"api/*", "api/apierr api/h1 api/h2 api/link runtime/call runtime/about runtime/app runtime/binding runtime/config runtime/crypto runtime/invoke runtime/pubsub runtime/state components/block components/fault", "edges translate: they use the services' request types, never each other, a backend, policy or the catalog"},
	{"sdk/go", "api/mecha/v1 api/link", "what applications import depends on the wire and on nothing of the sidecar"},
	{"deploy/samples/pluggable-go", "", "a component of others knows the protocol and nothing of the house"},
	{"cmd/mecha/launch", "components/conf", "mecha run starts processes; it links no part of the sidecar"},
}

const module = "github.com/mecha-project/mecha/"

// TestArrows fails on an import against the arrows, naming it and the reason of the rule.
func TestArrows(t *testing.T) {
	found, judged := violations(packages(t))
	for _, v := range found {
		t.Error(v)
	}
	if judged < 15 {
		t.Fatalf("only %d packages were judged; is the list of packages complete?", judged)
	}
}

// TestArrowsAreSeen makes sure that the judge can say no: a test that cannot fail proves nothing.
func TestArrowsAreSeen(t *testing.T) {
	tests := []struct {
		name, room, imports string
		want                string // part of what is said; empty: allowed
	}{
		{"a backend may use a contract", "components/redis", "components/block", ""},
		{"a backend may use what is below itself", "components/redis", "components/redis/wire", ""},
		{"the standard library is not judged", "components/fault", "", ""},
		{"errors know nobody", "components/fault", "components/conf", "components/fault imports components/conf"},
		{"a backend is a stranger to another", "components/redis", "components/memory", "components/redis imports components/memory"},
		{"a backend decides nothing", "components/redis", "runtime/call", "components/redis imports runtime/call"},
		{"an edge knows no other", "api/newapi", "api/httpapi", "api/newapi imports api/httpapi"},
		{"an edge knows no backend", "api/httpapi", "components/memory", "api/httpapi imports components/memory"},
		{"a service knows no edge", "runtime/state", "api/apierr", "runtime/state imports api/apierr"},
		{"services do not know each other", "runtime/state", "runtime/pubsub", "runtime/state imports runtime/pubsub"},
		{"the host knows no edge", "runtime/host", "api/httpapi", "runtime/host imports api/httpapi"},
		{"nobody imports a command", "runtime/host", "cmd/mecha/launch", "runtime/host imports cmd/mecha/launch"},
		{"a room nobody thought of", "pkg/util", "components/fault", "package pkg/util has no rule"},
		{"a command may use anything", "cmd/mecha", "components/memory", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := pkg{ImportPath: module + tt.room, Imports: []string{"context", "github.com/other/module"}}
			if tt.imports != "" {
				p.Imports = append(p.Imports, module+tt.imports)
			}
			found, _ := violations([]pkg{p})
			switch {
			case tt.want == "" && len(found) > 0:
				t.Errorf("refused: %s", found)
			case tt.want != "" && (len(found) != 1 || !strings.Contains(found[0], tt.want)):
				t.Errorf("said %q, want %q in it", found, tt.want)
			}
		})
	}
}

// violations judges packages; judged is how many were.
func violations(all []pkg) (found []string, judged int) {
	for _, p := range all {
		room := strings.TrimPrefix(p.ImportPath, module)
		if strings.HasPrefix(room, "cmd/mecha") && room != "cmd/mecha/launch" || strings.HasPrefix(room, "test/") || strings.HasPrefix(room, "deploy/") || strings.HasPrefix(room, "cmd/mechagen") {
			continue // anything goes
		}
		r, ok := ruleFor(room)
		if !ok {
			found = append(found, fmt.Sprintf("package %s has no rule: add one to this table and to docs/design/0001-house.md", room))
			continue
		}
		judged++
		for _, imp := range p.Imports {
			used, ours := strings.CutPrefix(imp, module)
			if ours && used != room && !allowed(r, room, used) {
				found = append(found, fmt.Sprintf("%s imports %s\n\trule: %s may import only [%s]\n\twhy: %s", room, used, r.room, r.mayUse, r.why))
			}
		}
	}
	return found, judged
}

func ruleFor(room string) (rule, bool) {
	for _, r := range rules {
		if r.room == room {
			return r, true
		}
	}
	for _, r := range rules {
		if prefix, any := strings.CutSuffix(r.room, "*"); any && strings.HasPrefix(room, prefix) {
			return r, true
		}
	}
	return rule{}, false
}

// allowed also lets a room use folders below itself.
func allowed(r rule, room, used string) bool {
	if strings.HasPrefix(used, room+"/") && room != "components/block" {
		return true
	}
	for _, ok := range strings.Fields(r.mayUse) {
		if ok == used {
			return true
		}
	}
	return false
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}
