package invoke

import (
	"strings"

	"github.com/mecha-project/mecha/runtime/call"
)

// Headers that tell the callee who calls. Callers cannot write them: their copies are dropped.
const (
	headerCallerApp = "dapr-caller-app-id"
	headerCallerNS  = "dapr-caller-namespace"
	headerCalleeApp = "dapr-callee-app-id"
)

// stamps holds the header values that are the same for every call of this sidecar.
type stamps struct {
	app, namespace    string
	forwardedFor      string
	forwardedHost     string
	forwarded         string
	haveForwardedData bool
}

func newStamps(o Options) stamps {
	return stamps{
		app: o.Self.App, namespace: o.Self.Namespace,
		forwardedFor: o.HostIP, forwardedHost: o.HostName,
		forwarded:         "for=" + o.HostIP + ";by=" + o.HostIP + ";host=" + o.HostName,
		haveForwardedData: o.HostIP != "",
	}
}

// clear drops what only sidecars may say.
func (s *stamps) clear(h *call.Fields) {
	out := (*h)[:0]
	for _, f := range *h {
		if !reserved(f.Name) {
			out = append(out, f)
		}
	}
	*h = out
}

// reserved reports names starting with dapr-caller- or dapr-callee-.
func reserved(name string) bool {
	const n = len("dapr-caller-")
	if len(name) < n || (name[0]|0x20) != 'd' {
		return false
	}
	return strings.EqualFold(name[:n], "dapr-caller-") || strings.EqualFold(name[:n], "dapr-callee-")
}

// local stamps a call to the own app.
func (s *stamps) local(req *call.Request, callee string) {
	s.clear(&req.Header)
	if req.Protocol == call.GRPC {
		return
	}
	req.Header.Add(headerCallerApp, s.app)
	req.Header.Add(headerCallerNS, s.namespace)
	req.Header.Add(headerCalleeApp, callee)
}

// remote stamps a call to a peer. A client's own X-Forwarded-For and Forwarded stay first; ours
// follow them once, however often the call is tried.
func (s *stamps) remote(req *call.Request, callee string, firstTry bool) {
	s.clear(&req.Header)
	req.Header.Add(headerCallerApp, s.app)
	req.Header.Add(headerCalleeApp, callee)
	if req.Protocol == call.GRPC {
		return
	}
	req.Header.Add(headerCallerNS, s.namespace)
	if !s.haveForwardedData || !firstTry {
		return
	}
	req.Header.Add("X-Forwarded-For", s.forwardedFor)
	req.Header.Add("X-Forwarded-Host", s.forwardedHost)
	req.Header.Add("Forwarded", s.forwarded)
}
