package telemetry

import (
	"strings"
)

// label is the path label of an HTTP metric in up to three pieces: head + mid + tail. Pieces
// are parts of the path itself or constants, so that cutting a path costs no memory.
type label struct{ head, mid, tail string }

func (l label) String() string { return l.head + l.mid + l.tail }

// paths turns request paths into labels. The zero value is Dapr's default: every path its own
// label, except for the parts that name a key, an actor or a workflow instance.
type paths struct {
	low      bool // increasedCardinality is off: unmatched paths have no label
	patterns []pattern
}

// fixedPaths keep their text even when increasedCardinality is off.
func fixedPath(p string) bool {
	switch p {
	case "/dapr/config", "/dapr/subscribe", "/dapr/metrics", "/healthz":
		return true
	}
	return false
}

// server labels a request to the sidecar's API. Path is without query.
func (p *paths) server(path string) label {
	if len(p.patterns) > 0 {
		if pat := p.match(invoked(path)); pat != nil {
			return label{head: pat.invoke}
		}
		if pat := p.match(path); pat != nil {
			return label{head: pat.text}
		}
	}
	if p.low && !fixedPath(path) {
		return label{}
	}
	return cutServer(path)
}

// client labels a request to the app.
func (p *paths) client(path string) label {
	if len(p.patterns) > 0 {
		if pat := p.match(path); pat != nil {
			return label{head: pat.text}
		}
	}
	if p.low && !fixedPath(path) {
		return label{}
	}
	return cutClient(path)
}

// invoked is the method part, with its slash, of a service invocation path; "" for any other.
func invoked(path string) string {
	rest, ok := strings.CutPrefix(path, "/v1.0/invoke/")
	if !ok {
		return ""
	}
	// The target may be a URL with slashes of its own.
	if i := strings.Index(rest, "/method/"); i > 0 {
		return rest[i+len("/method"):]
	}
	return ""
}

// cutServer drops what would make a label of every key, actor and workflow instance.
func cutServer(path string) label {
	whole := label{head: path}
	if !strings.HasPrefix(path, "/v1.0") {
		return whole
	}
	start := segment(path, 1) // after "/v1.0[-alphaN]"
	if start < 0 {
		return whole
	}
	rest := path[start:]
	block, rest, ok := strings.Cut(rest[1:], "/")
	if !ok {
		return whole
	}
	name, rest, deeper := strings.Cut(rest, "/")
	end := start + len("/") + len(block) + len("/") + len(name)
	switch block {
	case "state", "secrets":
		return label{head: path[:end]}
	case "actors":
		if !deeper {
			return whole
		}
		_, op, ok := strings.Cut(rest, "/")
		if !ok {
			return label{head: path[:end], mid: "/{id}"}
		}
		op, _, _ = strings.Cut(op, "/")
		return label{head: path[:end], mid: "/{id}/", tail: op}
	case "workflows":
		if !deeper {
			return whole
		}
		return cutWorkflow(path, path[:end], rest)
	}
	return whole
}

// cutWorkflow labels /workflows/<component>/<rest>. Only start names a workflow; everywhere
// else the first part is an instance.
func cutWorkflow(path, head, rest string) label {
	_, op, ok := strings.Cut(rest, "/")
	switch {
	case !ok || op == "":
		return label{head: head, mid: "/{instanceId}"}
	case op == "start":
		return label{head: path}
	case strings.HasPrefix(op, "raiseEvent/"):
		return label{head: head, mid: "/{instanceId}/raiseEvent/{eventName}"}
	}
	op, _, _ = strings.Cut(op, "/")
	return label{head: head, mid: "/{instanceId}/", tail: op}
}

// cutClient hides the actor's id in callbacks, whose paths have no leading slash.
func cutClient(path string) label {
	rest, ok := strings.CutPrefix(path, "actors/")
	if !ok {
		if rest, ok = strings.CutPrefix(path, "/actors/"); !ok {
			return label{head: path}
		}
	}
	offset := len(path) - len(rest)
	kind, id, ok := strings.Cut(rest, "/")
	if !ok {
		return label{head: path}
	}
	head := strings.TrimPrefix(path[:offset+len(kind)], "/")
	if slash := strings.IndexByte(id, '/'); slash >= 0 {
		return label{head: head, mid: "/{id}", tail: id[slash:]}
	}
	return label{head: head, mid: "/{id}"}
}

// segment is the index of the n-th slash of path after its first byte, or -1.
func segment(path string, n int) int {
	for i := 1; i < len(path); i++ {
		if path[i] == '/' {
			if n--; n == 0 {
				return i
			}
		}
	}
	return -1
}
