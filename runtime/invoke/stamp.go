package invoke

import "github.com/mecha-project/mecha/runtime/call"

// Headers that tell the callee who calls. Callers cannot write them: their copies are dropped.
const (
	headerCallerApp = "dapr-caller-app-id"
	headerCallerNS  = "dapr-caller-namespace"
	headerCalleeApp = "dapr-callee-app-id"
)

// maxStamps is how many headers an attempt can add: room for them spares growing the list twice.
const maxStamps = 7

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

// reserved reports names starting with dapr-caller- or dapr-callee-. An underscore counts as a
// dash: frameworks in the manner of CGI (WSGI, PHP, Rack) give both to the app under one name.
func reserved(name string) bool {
	const one, other = "dapr-caller-", "dapr-callee-"
	if len(name) < len(one) || (name[0]|0x20) != 'd' {
		return false
	}
	for i := range len(one) {
		c := name[i]
		switch {
		case c == '_':
			c = '-'
		case 'A' <= c && c <= 'Z':
			c |= 0x20
		}
		if c != one[i] && c != other[i] {
			return false
		}
	}
	return true
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
