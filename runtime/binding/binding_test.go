package binding_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/binding"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

func TestInvoke(t *testing.T) {
	k := newKit(t)
	out := &output{answer: &block.BindingAnswer{Data: []byte("said"), Metadata: map[string]string{"a": "1"}}}
	k.put("b", out)
	r := binding.Request{Binding: "b", Operation: "create", Data: []byte("d"), Metadata: map[string]string{"k": "v"}}
	got, err := k.Invoke(t.Context(), r)
	if d := cmp.Diff(out.answer, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	out.fail = func(int) error { return fault.New("op", fault.Unavailable, "down") }
	if got, err = k.Invoke(t.Context(), r); fault.Of(err) != fault.Unavailable || got == nil || got.Metadata["a"] != "1" {
		t.Errorf("a failure with an answer: %+v, %v", got, err)
	}
	out.fail, out.answer = nil, nil
	if got, err = k.Invoke(t.Context(), r); got != nil || err != nil {
		t.Errorf("nothing to say: %+v, %v", got, err)
	}
	if d := cmp.Diff([]string{"create d map[k:v]", "create d map[k:v]", "create d map[k:v]"}, out.all()); d != "" {
		t.Errorf("asked (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"out b create true", "out b create false", "out b create true"}, k.rec.all()); d != "" {
		t.Errorf("recorded (-want +got):\n%s", d)
	}
}

// What is refused does not reach the component, policy or the metrics.
func TestRefusals(t *testing.T) {
	k := newKit(t)
	if _, err := k.Invoke(t.Context(), binding.Request{Binding: "b", Operation: "create"}); fault.ReasonOf(err) != fault.NoSuchComponent || err.Error() != "couldn't find output binding b" {
		t.Errorf("no bindings: %v", err)
	}
	out := &output{}
	k.put("b", out)
	k.put("in", newInput())
	k.put("closed", both{&output{}, newInput()}, "direction", "Input")
	k.put("open", both{&output{}, newInput()}, "direction", " input , OUTPUT ")
	k.outbound.SetChain(&call.Chain{Retry: func(c *call.Call, _ error) (time.Duration, bool) { t.Error("policy saw the call"); return 0, false }})
	for name, tt := range map[string]struct {
		binding, op string
		code        fault.Code
		reason      fault.Reason
		text        string
	}{
		"another":           {"x", "create", fault.NotFound, fault.NoSuchComponent, "couldn't find output binding x"},
		"an input":          {"in", "create", fault.NotFound, fault.NoSuchComponent, "couldn't find output binding in: the component of that name is an input binding"},
		"the other way":     {"closed", "create", fault.NotFound, fault.NoSuchComponent, "couldn't find output binding closed: the direction of the component of that name leaves output out"},
		"no operation":      {"b", "", fault.Invalid, binding.NoOperation, "operation field is missing from request"},
		"unknown operation": {"b", "Create", fault.Unsupported, fault.BadOperation, "binding b does not support operation Create. supported operations:create get"},
	} {
		if _, err := k.Invoke(t.Context(), binding.Request{Binding: tt.binding, Operation: tt.op}); fault.Of(err) != tt.code || fault.ReasonOf(err) != tt.reason || err.Error() != tt.text {
			t.Errorf("%s: %v (%v, %s)", name, err, fault.Of(err), fault.ReasonOf(err))
		}
	}
	if len(out.all()) != 0 || len(k.rec.all()) != 0 {
		t.Errorf("asked %q, recorded %q", out.all(), k.rec.all())
	}
	if _, err := k.Invoke(t.Context(), binding.Request{Binding: "open", Operation: "get"}); err != nil {
		t.Errorf("both directions: %v", err)
	}
}

// Policy sees operation, metadata and safety; it may repeat, and copy.
func TestOutboundPolicy(t *testing.T) {
	k := newKit(t)
	out, shadow := &output{}, &output{}
	out.fail = func(n int) error {
		if n < 3 {
			return fault.New("op", fault.Unavailable, "down")
		}
		return nil
	}
	k.put("b", out)
	k.put("copy", shadow)
	var seen call.Desc
	m := &mirror{}
	k.outbound.SetChain(&call.Chain{Mirror: m, Retry: func(c *call.Call, _ error) (time.Duration, bool) {
		seen = c.Desc
		return 0, true
	}})
	data, md := []byte("data"), map[string]string{"Path": "/x"}
	if _, err := k.Invoke(t.Context(), binding.Request{Binding: "b", Operation: "create", Data: data, Metadata: md}); err != nil {
		t.Fatal(err)
	}
	if v, ok := seen.Attrs.Lookup("path"); seen.Op != "create" || seen.Safety != call.Unsafe || !ok || v != "/x" || seen.Caller.App != "shop" || !seen.Caller.Proven {
		t.Errorf("policy saw %+v", seen)
	}
	if _, ok := seen.Attrs.Lookup("none"); ok {
		t.Error("an entry that is not there")
	}
	copy(data, "!!!!") // the request's memory is another's now
	md["Path"] = "/y"
	m.run(t)
	if d := cmp.Diff([]string{"create data map[Path:/x]"}, shadow.all()); d != "" {
		t.Errorf("copied (-want +got):\n%s", d)
	}
	if n := len(out.all()); n != 3 {
		t.Errorf("%d attempts, want 3", n)
	}
	if d := cmp.Diff([]string{"out b create true"}, k.rec.all()); d != "" {
		t.Errorf("recorded (-want +got):\n%s", d)
	}
}

// mirror keeps the copy for later.
type mirror struct{ later func(context.Context) error }

func (m *mirror) Takes(*call.Call) (string, bool)                  { return "copy", true }
func (m *mirror) Go(_ string, run func(ctx context.Context) error) { m.later = run }
func (m *mirror) Compares(*call.Call) bool                         { return false }
func (m *mirror) Compared(bool)                                    {}
func (m *mirror) run(t *testing.T) {
	t.Helper()
	if m.later == nil {
		t.Fatal("nothing was copied")
	}
	if err := m.later(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDirections(t *testing.T) {
	for setting, tt := range map[string]struct {
		in, out, ok bool
	}{"": {true, true, true}, "input": {true, false, true}, "output": {false, true, true}, "Input, output": {true, true, true}, " , ": {true, true, true}, "inptu": {false, false, false}, "input;output": {false, false, false}} {
		info := catalog.Info{Raw: map[string]string{"direction": setting}}
		in, out := binding.Directions(both{&output{}, newInput()}, info)
		if err := binding.CheckDirection(info); in != tt.in || out != tt.out || (err == nil) != tt.ok {
			t.Errorf("%q: input %v, output %v, %v", setting, in, out, err)
		}
	}
	if in, out := binding.Directions(&output{}, catalog.Info{}); in || !out {
		t.Error("an output is one direction")
	}
}
