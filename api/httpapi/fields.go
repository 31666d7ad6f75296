package httpapi

import (
	"strings"

	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/runtime/call"
)

// carried appends to dst the fields of src that travel on: end-to-end ones, without Host, which
// named this sidecar, and those of the caller's dealings with a proxy, which end here.
func carried(dst, src call.Fields) call.Fields {
	dst = h1.EndToEnd(dst, src)
	out := dst[:0]
	for _, f := range dst {
		if !proxied(f.Name) && (len(f.Name) != 4 || !strings.EqualFold(f.Name, "Host")) {
			out = append(out, f)
		}
	}
	return out
}

// proxied reports Proxy-Authenticate and Proxy-Authorization.
func proxied(name string) bool {
	const prefix = "proxy-auth"
	return len(name) > len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) &&
		(strings.EqualFold(name, "proxy-authenticate") || strings.EqualFold(name, "proxy-authorization"))
}

// withoutBinary drops, in place, the "-bin" entries that only gRPC has a meaning for.
func withoutBinary(fs call.Fields) call.Fields {
	out := fs[:0]
	for _, f := range fs {
		if !binary(f.Name) {
			out = append(out, f)
		}
	}
	return out
}

func binary(name string) bool {
	const suffix = "-bin"
	return len(name) > len(suffix) && strings.EqualFold(name[len(name)-len(suffix):], suffix)
}
