package mesh

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
)

// guideDir is the guide to traffic policy.
const guideDir = "../../docs/guide/policy"

// guide is an example of the guide and a mesh to show it in.
type guide struct {
	*harness.Mesh
	t    *testing.T
	file string // its text
}

// demonstrations show what the guide says about each example, by the example's path.
var demonstrations = map[string]func(*guide){
	"start/everywhere.yaml":            showEverywhere,
	"start/merge.yaml":                 showMerge,
	"routing/weights.yaml":             showWeights,
	"routing/subsets.yaml":             showSubsets,
	"routing/canary.yaml":              showCanary,
	"stores/split.yaml":                showSplit,
	"stores/failover.yaml":             showFailover,
	"stores/write-failover.yaml":       showWriteFailover,
	"stores/read-only.yaml":            showReadOnly,
	"stores/brokers.yaml":              showBrokers,
	"timeouts/timeouts.yaml":           showTimeouts,
	"timeouts/retries.yaml":            showRetries,
	"timeouts/budget.yaml":             showBudget,
	"timeouts/hedging.yaml":            showHedging,
	"limits/caps.yaml":                 showCaps,
	"limits/rate.yaml":                 showRate,
	"limits/breaker.yaml":              showBreaker,
	"outliers/outliers.yaml":           showOutliers,
	"outliers/gateway.yaml":            showGatewayFailures,
	"outliers/silent.yaml":             showSilentReplicas,
	"outliers/percentage.yaml":         showFailurePercentage,
	"outliers/success-rate.yaml":       showSuccessRate,
	"outliers/health.yaml":             showHealth,
	"stores/health.yaml":               showStoreHealth,
	"balancing/locality-weighted.yaml": showWeightedZones,
	"balancing/least-request.yaml":     showLeastRequest,
	"balancing/peak-ewma.yaml":         showPeakEWMA,
	"balancing/maglev.yaml":            showMaglev,
	"balancing/sticky.yaml":            showSticky,
	"balancing/locality.yaml":          showLocality,
	"balancing/slow-start.yaml":        showSlowStart,
	"mirroring/requests.yaml":          showMirroredRequests,
	"mirroring/publishes.yaml":         showMirroredPublishes,
	"mirroring/shadow-store.yaml":      showShadowStore,
	"faults/delay.yaml":                showDelay,
	"faults/abort.yaml":                showAbort,
	"headers/headers.yaml":             showHeaders,
	"access/services.yaml":             showServiceAccess,
	"access/components.yaml":           showComponentAccess,
	"access/shadow.yaml":               showShadowAccess,
	"resiliency/dapr.yaml":             showResiliency,
	"resiliency/merged.yaml":           showResiliencyMerged,
}

// Every example of the guide passes `mecha check`, and sidecars with exactly that file do what
// the guide says.
func TestPolicyGuide(t *testing.T) {
	for _, name := range examples(t) {
		t.Run(strings.TrimSuffix(name, ".yaml"), func(t *testing.T) {
			t.Parallel()
			show := demonstrations[name]
			if show == nil {
				t.Fatal("nothing shows what this example does")
			}
			path := filepath.Join(guideDir, name)
			if out, err := exec.Command(harness.Binary(t), "check", path).CombinedOutput(); err != nil {
				t.Fatalf("mecha check: %v\n%s", err, out)
			}
			show(newGuide(t, name))
		})
	}
}

// newGuide is an example and an empty mesh.
func newGuide(t *testing.T, name string) *guide {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(guideDir, name))
	if err != nil {
		t.Fatal(err)
	}
	return &guide{Mesh: harness.NewMesh(t), t: t, file: string(text)}
}

// examples are the paths of all examples.
func examples(t *testing.T) (names []string) {
	t.Helper()
	err := filepath.WalkDir(guideDir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".yaml") {
			name, _ := filepath.Rel(guideDir, path)
			names = append(names, filepath.ToSlash(name))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < len(demonstrations) {
		t.Errorf("%d examples, but %d demonstrations", len(names), len(demonstrations))
	}
	return names
}

// quotation is a link to an example and the block of text below it.
var quotation = regexp.MustCompile("(?m)^\\[[^\\]]*\\]\\(([^)]*\\.yaml)\\):?\\n\\n```yaml\\n((?s:.*?))```$")

// Each example is quoted once, word for word, and no page shows a policy that is not one.
func TestPolicyGuideQuotesItsExamples(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(guideDir, "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	quoted := map[string]int{}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		found := quotation.FindAllStringSubmatch(string(text), -1)
		if all := strings.Count(string(text), "```yaml"); all != len(found) {
			t.Errorf("%s: %d of its %d yaml blocks follow a link to a file", filepath.Base(page), len(found), all)
		}
		for _, q := range found {
			quoted[q[1]]++
			file, err := os.ReadFile(filepath.Join(guideDir, q[1]))
			if err != nil || string(file) != q[2] {
				t.Errorf("%s: the block below %s is not that file (%v)", filepath.Base(page), q[1], err)
			}
		}
	}
	for _, name := range examples(t) {
		if quoted[name] != 1 {
			t.Errorf("%s is quoted %d times, want once", name, quoted[name])
		}
	}
}

// caller is a sidecar with the example, and an app only if it is to get something.
func (g *guide) caller(env ...string) *harness.Sidecar {
	return g.Start(harness.Options{AppID: "caller", Files: map[string]string{"policy.yaml": g.file}, Env: env})
}

// app is a sidecar without the example, in front of an app.
func (g *guide) app(id string, h http.Handler, env ...string) *harness.Sidecar {
	return g.Start(harness.Options{AppID: id, AppPort: harness.Serve(g.t, h), Env: env})
}

// replica is a replica of orders that answers its name.
func (g *guide) replica(name string, env ...string) *harness.Sidecar {
	return g.app("orders", answers(name), env...)
}

func answers(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) })
}

// call invokes a method of orders.
func (g *guide) call(via *harness.Sidecar, verb, path string, header ...string) (*http.Response, string) {
	g.t.Helper()
	resp, body := harness.Do(g.t, verb, via.URL("/v1.0/invoke/orders/method"+path), nil, header...)
	return resp, string(body)
}

// tally calls orders n times and counts the answers; each must be good.
func (g *guide) tally(via *harness.Sidecar, n int, header ...string) map[string]int {
	g.t.Helper()
	got := map[string]int{}
	for range n {
		resp, body := g.call(via, "GET", "/who", header...)
		if resp.StatusCode != http.StatusOK {
			g.t.Fatalf("after %v: %d %s", got, resp.StatusCode, body)
		}
		got[body]++
	}
	return got
}

// refused checks that a policy refused a call, and which.
func (g *guide) refused(resp *http.Response, body string, status int, policy string) {
	g.t.Helper()
	if resp.StatusCode != status || resp.Header.Get("x-mecha-policy") != policy {
		g.t.Errorf("%d by policy %q (%s), want %d by %q", resp.StatusCode, resp.Header.Get("x-mecha-policy"), body, status, policy)
	}
}

// save writes a key of a store and returns the answer.
func (g *guide) save(via *harness.Sidecar, store, key, value string) (*http.Response, string) {
	g.t.Helper()
	resp, body := harness.Do(g.t, "POST", via.URL("/v1.0/state/"+store), fmt.Appendf(nil, `[{"key":%q,"value":%q}]`, key, value), "content-type", "application/json")
	return resp, string(body)
}

// mustSave writes a key.
func (g *guide) mustSave(via *harness.Sidecar, store, key, value string) {
	g.t.Helper()
	if resp, body := g.save(via, store, key, value); resp.StatusCode != http.StatusNoContent {
		g.t.Fatalf("saving %s in %s: %d %s", key, store, resp.StatusCode, body)
	}
}

// read is the value of a key without its quotes, "" when there is none, or the status when it
// cannot be read.
func (g *guide) read(via *harness.Sidecar, store, key string) string {
	g.t.Helper()
	resp, body := harness.Do(g.t, "GET", via.URL("/v1.0/state/"+store+"/"+key), nil)
	switch resp.StatusCode {
	case http.StatusOK:
		return strings.Trim(string(body), `"`)
	case http.StatusNoContent:
		return ""
	}
	return resp.Status
}

// counted tells whether a metric with these labels is above zero.
func (g *guide) counted(s *harness.Sidecar, name string, labels ...string) bool {
	g.t.Helper()
	_, body := harness.Do(g.t, "GET", fmt.Sprintf("http://127.0.0.1:%d/metrics", s.Metrics), nil)
next:
	for line := range strings.SplitSeq(string(body), "\n") {
		if !strings.HasPrefix(line, name+"{") || strings.HasSuffix(line, " 0") {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(line, l) {
				continue next
			}
		}
		return true
	}
	return false
}

// tries is an app that counts what it gets by verb and path. What it answers may depend on the
// number of the request, from 1.
type tries struct {
	mu     sync.Mutex
	n      map[string]int
	last   http.Header
	answer func(n int, w http.ResponseWriter, r *http.Request)
}

func (a *tries) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	if a.n == nil {
		a.n = map[string]int{}
	}
	a.n[r.Method+" "+r.URL.Path]++
	n := a.n[r.Method+" "+r.URL.Path]
	a.last = r.Header
	a.mu.Unlock()
	a.answer(n, w, r)
}

func (a *tries) count(what string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n[what]
}

// hang does not answer until the caller gives up.
func hang(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-time.After(20 * time.Second):
	}
}

// The labels of a sidecar are a part of its start: wrong ones stop it.
func TestWrongLabelsStopTheStart(t *testing.T) {
	s := harness.NewMesh(t).Start(harness.Options{AppID: "orders", Env: []string{"MECHA_LABELS=version v2"}, NoWait: true})
	if code := s.Wait(15 * time.Second); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if want := `environment variable MECHA_LABELS: "version v2" is no label`; !strings.Contains(s.Log(), want) {
		t.Errorf("the log does not say %q:\n%s", want, s.Log())
	}
}

// rewrite changes the example in a running sidecar and waits until it is in force.
func (g *guide) rewrite(s *harness.Sidecar, old, new string) {
	g.t.Helper()
	text := strings.Replace(g.file, old, new, 1)
	if text == g.file {
		g.t.Fatalf("the example has no %q", old)
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "policy.yaml"), []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
	s.WaitLog("traffic policy changed")
}

// end stops a sidecar in order.
func end(s *harness.Sidecar) {
	s.Signal(syscall.SIGTERM)
	s.Wait(15 * time.Second)
}
