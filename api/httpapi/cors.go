package httpapi

import (
	"net/http"
	"slices"
	"strings"

	"github.com/mecha-project/mecha/runtime/call"
)

// cors handles a preflight and decorates other answers; it reports whether the request was
// answered. With no configured origins none of this runs.
func (s *Server) cors(r *Request) bool {
	r.vary = true
	origin := r.Header.Get("Origin")
	asked := r.Header.Get("Access-Control-Request-Method")
	allowed := origin != "" && s.originAllowed(origin)
	if r.Method == "OPTIONS" && origin != "" && asked != "" {
		fields := call.Fields{{Name: "Vary", Value: "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"}}
		if allowed {
			fields.Add("Access-Control-Allow-Origin", s.allowOrigin(origin))
			fields.Add("Access-Control-Allow-Methods", asked)
			if h := r.Header.Get("Access-Control-Request-Headers"); h != "" {
				fields.Add("Access-Control-Allow-Headers", canonicalList(h))
			}
		}
		r.Respond(200, fields, nil)
		return true
	}
	if allowed {
		r.cors = s.allowOrigin(origin)
	}
	return false
}

// canonicalList writes a list of header names in canonical case.
func canonicalList(names string) string {
	parts := strings.Split(names, ",")
	for i, p := range parts {
		parts[i] = http.CanonicalHeaderKey(strings.TrimSpace(p))
	}
	return strings.Join(parts, ", ")
}

func (s *Server) originAllowed(origin string) bool {
	return slices.Contains(s.o.Origins, "*") || slices.Contains(s.o.Origins, origin)
}

func (s *Server) allowOrigin(origin string) string {
	if slices.Contains(s.o.Origins, "*") {
		return "*"
	}
	return origin
}
