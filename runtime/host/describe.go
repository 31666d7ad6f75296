package host

import (
	"os"
	"strconv"
	"time"

	"github.com/mecha-project/mecha/runtime/about"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

func osEnv(name string) string { return os.Getenv(name) }

// describe is the metadata document without the attributes set at run time.
func (h *Sidecar) describe() about.Document {
	d := about.Document{RuntimeVersion: h.o.Version, EnabledFeatures: h.features(),
		Extended:     map[string]string{"daprRuntimeVersion": h.o.Version},
		ActorRuntime: about.ActorRuntime{RuntimeStatus: "DISABLED", Placement: "placement: disconnected"},
		AppConnection: about.AppConnection{Port: h.s.AppPort, Protocol: h.s.AppProtocol, ChannelAddress: h.s.AppChannelAddress,
			MaxConcurrency: max(h.s.AppMaxConcurrency, 0), Health: h.appHealth()}}
	if h.catalog != nil {
		for _, c := range append(h.catalog.Infos(), h.o.Loaded...) {
			d.Components = append(d.Components, about.Component{Name: c.Name, Type: c.Type, Version: c.Version, Capabilities: c.Capabilities})
		}
	}
	if h.services == nil {
		return d
	}
	for _, name := range h.services.Invoke.Endpoints() {
		d.HTTPEndpoints = append(d.HTTPEndpoints, about.Endpoint{Name: name})
	}
	for _, s := range h.services.PubSub.List() {
		out := about.Subscription{PubSubName: s.PubSub, Topic: s.Topic, DeadLetterTopic: s.DeadLetterTopic, Metadata: s.Metadata, Type: s.Source.String()}
		for _, r := range s.Rules {
			out.Rules = append(out.Rules, about.Rule{Match: r.Match, Path: r.Path})
		}
		d.Subscriptions = append(d.Subscriptions, out)
	}
	return d
}

func (h *Sidecar) features() []string {
	var out []string
	for _, f := range h.o.Config.Features {
		if f.Enabled {
			out = append(out, f.Name)
		}
	}
	return out
}

func (h *Sidecar) appHealth() *about.AppHealth {
	c := h.s.AppHealth
	if !c.Enabled {
		return nil
	}
	path := c.Path
	if h.s.AppProtocol == "grpc" || h.s.AppProtocol == "grpcs" {
		path = ""
	}
	return &about.AppHealth{Path: path, Interval: c.Interval.String(), Timeout: c.Timeout.String(), Threshold: c.Threshold}
}

// invokeRecorder gives invoke's figures to the metrics.
type invokeRecorder struct {
	m *telemetry.Metrics
	// judged is set when the access control counts who is let in.
	judged bool
}

func (r invokeRecorder) InvokeReqSent(app, kind string) { r.m.InvokeReqSent(app, kind) }
func (r invokeRecorder) InvokeReqRecv(app string) {
	r.m.InvokeReqRecv(app)
	if !r.judged {
		r.m.ACL("", "", "", true, true) // without access control, its default action allows
	}
}

// countAccess counts what the access control decides. Only who is proven has a name there:
// others could write what they like.
func (h *Sidecar) countAccess(caller call.Caller, global, allowed bool) {
	if !caller.Proven {
		caller = call.Caller{}
	}
	h.o.Metrics.ACL(caller.App, "", caller.Namespace, global, allowed)
}

func (r invokeRecorder) InvokeResSent(app string, status int) {
	r.m.InvokeResSent(app, statusText(status))
}
func (r invokeRecorder) InvokeResRecv(app string, status int, kind string, took time.Duration) {
	r.m.InvokeResRecv(app, statusText(status), kind, took)
}

// statusText is the decimal status without an allocation for the usual ones.
func statusText(status int) string {
	if status >= 0 && status < len(statusTexts) {
		return statusTexts[status]
	}
	return strconv.Itoa(status)
}

var statusTexts = func() (t [600]string) {
	for i := range t {
		t[i] = strconv.Itoa(i)
	}
	return t
}()
