package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/mecha-project/mecha/api/adminapi"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
	"github.com/mecha-project/mecha/runtime/policy/file"
	"github.com/mecha-project/mecha/runtime/settings"
)

// question is a call described on the command line, or in a query.
type question struct {
	kind, dest, op, resource, from, appID, namespace string
	inbound                                          bool
	headers                                          []string
}

// newExplainCommand is `mecha explain`: which policy governs a call, by files or in a running
// sidecar.
func newExplainCommand() *cobra.Command {
	var q question
	var folders, configs []string
	var port int
	var asJSON bool
	var live time.Duration
	cmd := &cobra.Command{
		Use:   "explain [--metrics-port port | -d folder...] [--kind kind --dest name] [--op operation] ...",
		Short: "Tell which traffic policy governs a call",
		Long: `Explain tells what a call passes on its way: which policies match it, what each part of
the chain does, and which policy decided it. It makes no call.

With -d it reads resource files as a sidecar would. With --metrics-port it asks a running
sidecar, and without --kind that one tells what its policies are doing now: endpoints that
are ejected, breakers that are open, calls that were refused, by which rule. With --live it
shows the sidecar's calls as they end, and what policy did to each.`,
		Example: `  mecha explain -d ./resources --kind state --dest orders-db --op get --key order-7
  mecha explain --metrics-port 9090 --kind service --dest checkout --op POST --path /pay --header x-canary=1
  mecha explain --metrics-port 9090
  mecha explain --metrics-port 9090 --live 10s`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			switch {
			case port == 0 && len(folders) == 0:
				err = errors.New("name resource folders with -d, or a running sidecar with --metrics-port")
			case port != 0 && len(folders)+len(configs) > 0:
				err = errors.New("-d and -c read files, --metrics-port asks a sidecar; choose one")
			case q.kind == "" && port == 0:
				err = errors.New("say what the call is: --kind (one of " + strings.Join(policy.Kinds(), ", ") + ") and --dest")
			case q.kind != "" && !knownKind(q.kind):
				err = fmt.Errorf("--kind %q is not one of %s", q.kind, strings.Join(policy.Kinds(), ", "))
			case q.kind != "" && q.dest == "":
				err = errors.New("say which app or component the call is for, with --dest")
			}
			if err != nil {
				return &settings.ExitError{Code: 2, Err: err}
			}
			switch {
			case live < 0 || live > maxLive:
				return &settings.ExitError{Code: 2, Err: fmt.Errorf("--live: want a time up to %v", maxLive)}
			case live > 0 && port == 0:
				return &settings.ExitError{Code: 2, Err: errors.New("--live needs a running sidecar: --metrics-port")}
			case live > 0:
				return watchSidecar(cmd.Context(), cmd.OutOrStdout(), port, live, asJSON)
			case port != 0:
				return askSidecar(cmd.OutOrStdout(), port, &q, asJSON)
			}
			return explainFiles(cmd.OutOrStdout(), cmd.ErrOrStderr(), folders, configs, &q, asJSON)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &settings.ExitError{Code: 2, Err: err} })
	f := cmd.Flags()
	f.StringArrayVarP(&folders, "resources-path", "d", nil, "folder of resource files; may be repeated")
	f.StringArrayVarP(&configs, "config", "c", nil, "configuration file, for access control; may be repeated")
	f.IntVar(&port, "metrics-port", 0, "ask the sidecar with this metrics port on this host")
	f.StringVar(&q.kind, "kind", "", "kind of call: "+strings.Join(policy.Kinds(), ", "))
	f.StringVar(&q.dest, "dest", "", "app id or component name the call is for")
	f.StringVar(&q.op, "op", "", "operation: get, set, publish, an HTTP verb, a gRPC full method")
	f.StringVar(&q.resource, "path", "", "method path of an invocation, or topic")
	f.StringVar(&q.resource, "key", "", "key of a state call; the same as --path")
	f.StringArrayVar(&q.headers, "header", nil, "header of an invocation, name=value; may be repeated")
	f.StringVar(&q.from, "from", "", "app that calls; default --app-id, or an unknown one for calls that arrive")
	f.StringVar(&q.appID, "app-id", "", "app whose sidecar is asked about; decides which scoped resources apply")
	f.StringVar(&q.namespace, "namespace", "", "its namespace")
	f.BoolVar(&q.inbound, "inbound", false, "the call arrives for the app, rather than leaves (kinds app and deliver always do)")
	f.DurationVar(&live, "live", 0, "show calls as they end, for this long")
	f.BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

func knownKind(kind string) bool {
	_, ok := kindOf(kind)
	return ok
}

func kindOf(word string) (call.Kind, bool) {
	for _, k := range call.Kinds() {
		if strings.EqualFold(k.String(), word) {
			return k, true
		}
	}
	return 0, false
}

// target and desc turn the question into what policy looks at.
func (q *question) target() *call.Target {
	kind, _ := kindOf(q.kind)
	t := &call.Target{Kind: kind, Name: q.dest, Namespace: q.namespace}
	if q.inbound || kind == call.App || kind == call.Deliver {
		t.Direction = call.Inbound
	}
	return t
}

func (q *question) desc() call.Desc {
	d := call.Desc{Op: q.op, Resource: strings.TrimPrefix(q.resource, "/"), Safety: safetyOf(q.op)}
	if strings.HasPrefix(q.op, "/") && q.resource == "" {
		d.Resource = q.op
	}
	switch kind, _ := kindOf(q.kind); kind {
	case call.State, call.Lock, call.Config, call.Cache:
		d.Key = q.resource
	case call.Binding:
		d.Safety = call.Unsafe // whatever the operation is called
	}
	var header call.Fields
	for _, h := range q.headers {
		name, value, _ := strings.Cut(h, "=")
		header.Add(name, value)
	}
	d.Attrs = &header
	d.Caller = call.Caller{App: q.from, Namespace: q.namespace}
	if q.target().Direction == call.Outbound {
		d.Caller.Proven = true // the own app
		if q.from == "" {
			d.Caller.App = q.appID
		}
	}
	return d
}

// safetyOf is what the blocks say of their operations.
func safetyOf(op string) call.Safety {
	switch op {
	case "get", "bulkGet", "query", "subscribe", "GET", "HEAD", "OPTIONS", "TRACE":
		return call.Safe
	case "set", "delete", "bulkDelete", "PUT", "DELETE":
		return call.Idempotent
	}
	return call.Unsafe
}

// explainFiles compiles the resources of folders and explains the call by them.
func explainFiles(w, warn io.Writer, folders, configs []string, q *question, asJSON bool) error {
	res, err := settings.LoadResources(folders, settings.Selection{AppID: q.appID, Namespace: q.namespace})
	if err != nil {
		return &settings.ExitError{Code: 1, Err: err}
	}
	src := file.Source{Policies: res.Policies, Resiliencies: res.Resiliencies}
	if len(configs) > 0 {
		cfg, _, err := settings.LoadConfiguration(configs, os.Getenv)
		if err != nil {
			return &settings.ExitError{Code: 1, Err: err}
		}
		src.Access = cfg.AccessControl
	}
	c := file.Compile(src)
	for _, f := range append(res.Refused, c.Findings...) {
		fmt.Fprintln(warn, f.String())
	}
	if c.Refused || len(res.Refused) > 0 {
		return &settings.ExitError{Code: 1, Err: errors.New("a sidecar would not start with these policies")}
	}
	e := policy.New(policy.Options{})
	defer e.Close()
	e.Swap(c.Snapshot)
	return show(w, e.Explain(q.target(), q.desc()), asJSON)
}

func show(w io.Writer, x policy.Explanation, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(x)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s call to %s", x.Direction, x.Kind, x.Target)
	for _, p := range [][2]string{{"", x.Op}, {"on", x.Resource}, {"from", x.Caller}} {
		if p[1] != "" {
			b.WriteString(strings.TrimRight(" "+p[0], " ") + " " + p[1])
		}
	}
	b.WriteString("\n\npolicies:\n")
	if len(x.Policies) == 0 {
		b.WriteString("  none\n")
	}
	for _, v := range x.Policies {
		mark, why := "+", ""
		if !v.Matches {
			mark, why = "-", ": "+v.Why
		}
		fmt.Fprintf(&b, "  %s %s (%s)%s\n", mark, v.Policy, v.Where, why)
	}
	b.WriteString("\nwhat the call passes, outermost first:\n")
	if len(x.Parts) == 0 {
		b.WriteString("  nothing\n")
	}
	for _, p := range x.Parts {
		rule := "built in"
		if p.Rule != "" {
			rule = p.Rule
		}
		if p.Where != "" {
			rule += " (" + p.Where + ")"
		}
		fmt.Fprintf(&b, "  %-16s %s\n  %-16s   by %s\n", p.Name, p.Does, "", rule)
	}
	if x.To != "" {
		fmt.Fprintf(&b, "\nit goes to %s\n", x.To)
	}
	if x.Refused != "" {
		fmt.Fprintf(&b, "\nit is refused: %s\n", x.Refused)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// askSidecar asks a running sidecar.
func askSidecar(w io.Writer, port int, q *question, asJSON bool) error {
	query := url.Values{}
	path := "status"
	if q.kind != "" {
		path = "explain"
		for k, v := range map[string]string{"kind": q.kind, "dest": q.dest, "op": q.op, "path": q.resource, "from": q.from, "namespace": q.namespace, "inbound": strconv.FormatBool(q.inbound)} {
			query.Set(k, v)
		}
		query["header"] = q.headers
	}
	at := "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) + adminapi.PolicyPath + path + "?" + query.Encode()
	client := &http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(at)
	if err != nil {
		return &settings.ExitError{Code: 1, Err: fmt.Errorf("no sidecar answers on metrics port %d of this host: %w", port, err)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	switch {
	case err != nil:
		return &settings.ExitError{Code: 1, Err: err}
	case resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json"):
		return &settings.ExitError{Code: 1, Err: fmt.Errorf("metrics port %d belongs to something else, or to a sidecar that is still starting: %s", port, resp.Status)}
	case asJSON:
		_, err = w.Write(body)
		return err
	case path == "status":
		return showStatus(w, body)
	}
	var x policy.Explanation
	if err := json.Unmarshal(body, &x); err != nil {
		return &settings.ExitError{Code: 1, Err: fmt.Errorf("the sidecar's answer: %w", err)}
	}
	return show(w, x, false)
}

// maxLive bounds how long calls are watched: it costs each of them something.
const maxLive = 10 * time.Minute

// watchSidecar shows the calls of a running sidecar as they end.
func watchSidecar(ctx context.Context, w io.Writer, port int, d time.Duration, asJSON bool) error {
	at := "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) + adminapi.PolicyPath + "live?for=" + d.String()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return &settings.ExitError{Code: 1, Err: err}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return &settings.ExitError{Code: 1, Err: fmt.Errorf("no sidecar answers on metrics port %d of this host: %w", port, err)}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/x-ndjson" {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return &settings.ExitError{Code: 1, Err: fmt.Errorf("metrics port %d: %s %s", port, resp.Status, strings.TrimSpace(string(text)))}
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if asJSON {
			fmt.Fprintln(w, lines.Text())
			continue
		}
		var l policy.Live
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return &settings.ExitError{Code: 1, Err: fmt.Errorf("the sidecar's answer: %w", err)}
		}
		fmt.Fprintln(w, liveLine(&l))
	}
	return lines.Err()
}

// liveLine is one call in one line.
func liveLine(l *policy.Live) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s %s %s %s: %s in %v", l.At.Format("15:04:05.000"), l.Direction, l.Kind, l.Target, l.Op, l.Resource, l.Outcome, l.Took.Round(time.Microsecond))
	if l.Attempts > 1 {
		fmt.Fprintf(&b, ", %d attempts", l.Attempts)
	}
	if l.To != "" && l.To != l.Target {
		b.WriteString(", went to " + l.To)
	}
	if l.Endpoint != "" {
		b.WriteString(", endpoint " + l.Endpoint)
	}
	if l.Refused != "" {
		b.WriteString(", refused by " + l.Refused)
	}
	var by []string
	for _, p := range l.Parts {
		if p.Rule != "" {
			by = append(by, p.Name+" by "+p.Rule)
		}
	}
	if len(by) > 0 {
		b.WriteString(" [" + strings.Join(by, ", ") + "]")
	}
	return b.String()
}

// showStatus writes what policy is doing.
func showStatus(w io.Writer, body []byte) error {
	var s policy.Status
	if err := json.Unmarshal(body, &s); err != nil {
		return &settings.ExitError{Code: 1, Err: fmt.Errorf("the sidecar's answer: %w", err)}
	}
	var b strings.Builder
	section := func(title string, lines []string) {
		if len(lines) == 0 {
			lines = []string{"none"}
		}
		fmt.Fprintf(&b, "%s:\n  %s\n", title, strings.Join(lines, "\n  "))
	}
	section("traffic policies in force", s.Policies)
	var lines []string
	for _, e := range s.Endpoints {
		state := "healthy"
		switch {
		case e.Ejected:
			state = "ejected"
		case e.Failing:
			state = "fails its checks"
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s: %s %s %s, %d in flight, %v", e.Destination, e.ID, e.Address, state, e.Inflight, e.Latency.Round(10*time.Microsecond))))
	}
	section("endpoints watched", lines)
	lines = nil
	for _, br := range s.Breakers {
		lines = append(lines, fmt.Sprintf("%s %s (%s)", br.Name, br.State, br.Rule))
	}
	section("breakers not closed", lines)
	lines = nil
	for _, r := range s.Refused {
		lines = append(lines, fmt.Sprintf("%s %s of %s: %s %s from %s, %d times in all", r.At.Format(time.TimeOnly), r.Part, r.Rule, r.Op, r.Target+" "+r.Resource, orUnknown(r.Caller), r.Times))
	}
	section("calls refused, the last of each rule", lines)
	lines = nil
	for _, c := range s.Changes {
		lines = append(lines, fmt.Sprintf("%s %s %s: %s", c.At.Format(time.TimeOnly), c.Part, c.Target, c.What))
	}
	section("what happened lately", lines)
	_, err := io.WriteString(w, b.String())
	return err
}

func orUnknown(s string) string {
	if s == "" {
		return "an unknown caller"
	}
	return s
}

// policyPort answers what operators ask about policy, once there is an engine.
type policyPort struct {
	engine    atomic.Pointer[policy.Engine]
	app       string
	namespace string
}

func (p *policyPort) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e := p.engine.Load()
	if e == nil {
		http.Error(w, "the sidecar is still starting", http.StatusServiceUnavailable)
		return
	}
	var out any
	switch strings.TrimPrefix(r.URL.Path, adminapi.PolicyPath) {
	case "status":
		out = e.Status()
	case "live":
		p.live(w, r, e)
		return
	case "explain":
		v := r.URL.Query()
		q := question{kind: v.Get("kind"), dest: v.Get("dest"), op: v.Get("op"), resource: v.Get("path"), from: v.Get("from"),
			appID: p.app, namespace: v.Get("namespace"), inbound: v.Get("inbound") == "true", headers: v["header"]}
		if !knownKind(q.kind) || q.dest == "" {
			http.Error(w, "want the parameters kind (one of "+strings.Join(policy.Kinds(), ", ")+") and dest", http.StatusBadRequest)
			return
		}
		if kind, _ := kindOf(q.kind); q.namespace == "" && (kind == call.Service || kind == call.App) {
			q.namespace = p.namespace
		}
		t := q.target()
		if t.Kind == call.Service && t.Name == p.app { // the own app
			t.Kind = call.App
		}
		out = e.Explain(t, q.desc())
	default:
		http.Error(w, "there are "+adminapi.PolicyPath+"status, explain and live", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(out) // a caller that left is not our error
}

// live streams calls as they end, a JSON document a line. Whoever reads too slowly misses some.
func (p *policyPort) live(w http.ResponseWriter, r *http.Request, e *policy.Engine) {
	d, err := time.ParseDuration(r.URL.Query().Get("for"))
	if err != nil || d <= 0 || d > maxLive {
		http.Error(w, fmt.Sprintf("want the parameter for, a time up to %v", maxLive), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), d)
	defer cancel()
	calls := make(chan policy.Live, 1024)
	tapped := make(chan error, 1)
	go func() {
		tapped <- e.Tap(ctx, func(l policy.Live) {
			select {
			case calls <- l:
			default:
			}
		})
	}()
	enc := json.NewEncoder(w)
	begun := false
	for {
		select {
		case l := <-calls:
			if !begun {
				begun = true
				w.Header().Set("Content-Type", "application/x-ndjson")
			}
			if enc.Encode(l) != nil {
				cancel()
			}
			if len(calls) == 0 {
				_ = http.NewResponseController(w).Flush()
			}
		case err := <-tapped:
			if err != nil {
				http.Error(w, err.Error(), http.StatusConflict)
			} else if !begun {
				w.Header().Set("Content-Type", "application/x-ndjson")
			}
			return
		}
	}
}
