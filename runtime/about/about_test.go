package about_test

import (
	"encoding/json"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/runtime/about"
)

func TestReadiness(t *testing.T) {
	s := about.New("app", "runtime", "app")
	if d := cmp.Diff([]string{"app", "runtime"}, s.Pending()); d != "" {
		t.Errorf("at first (-want +got):\n%s", d)
	}
	s.Ready("runtime")
	s.Ready("runtime")
	s.Ready("app")
	if p := s.Pending(); len(p) != 0 {
		t.Errorf("still waits for %v", p)
	}
	s.Unready("runtime")
	if d := cmp.Diff([]string{"runtime"}, s.Pending()); d != "" {
		t.Errorf("after a part went away (-want +got):\n%s", d)
	}
	if s.Outbound() {
		t.Error("outbound before anybody said so")
	}
	s.SetOutbound(true)
	if !s.Outbound() {
		t.Error("outbound is not ready")
	}
}

func TestMetadata(t *testing.T) {
	s := about.New("app")
	if got, err := json.Marshal(s.Metadata()); err != nil || string(got) != `{"id":"app","runtimeVersion":"","appConnectionProperties":{},"actorRuntime":{"runtimeStatus":"","hostReady":false,"placement":""}}` {
		t.Errorf("before the host describes itself: %s, %v", got, err)
	}
	shared := map[string]string{"version": "1"}
	s.Describe(func() about.Document { return about.Document{ID: "other", RuntimeVersion: "1", Extended: shared} })
	s.SetAttribute("version", "2")
	s.SetAttribute("color", "blue")
	d := s.Metadata()
	if d.ID != "app" || d.RuntimeVersion != "1" {
		t.Errorf("id %q, version %q", d.ID, d.RuntimeVersion)
	}
	if diff := cmp.Diff(map[string]string{"version": "2", "color": "blue"}, d.Extended); diff != "" {
		t.Errorf("attributes win over what the host says (-want +got):\n%s", diff)
	}
	if shared["version"] != "1" {
		t.Error("the host's own map was changed: it is shared by concurrent readers")
	}
	d.Extended["color"] = "red"
	if s.Metadata().Extended["color"] != "blue" {
		t.Error("a reader can change the attributes")
	}
}

func TestShutdownNeverBlocks(t *testing.T) {
	s := about.New("app")
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() { s.Shutdown(i == 0); s.SetAttribute("k", "v"); s.Metadata() })
	}
	wg.Wait()
	select {
	case <-s.Stops():
	default:
		t.Error("no request arrived")
	}
	one := about.New("app")
	one.Shutdown(true)
	if stop := <-one.Stops(); !stop.Force {
		t.Error("force was lost")
	}
}
