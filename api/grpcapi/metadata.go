package grpcapi

import (
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mecha-project/mecha/runtime/call"
)

// fieldsOf turns metadata into fields. Pseudo headers and what gRPC itself manages stay behind;
// keep decides about the rest (nil keeps all).
func fieldsOf(md metadata.MD, keep func(name string) bool) call.Fields {
	fs := make(call.Fields, 0, len(md)+6)
	for name, values := range md {
		if strings.HasPrefix(name, ":") || managed(name) || (keep != nil && !keep(name)) {
			continue
		}
		for _, v := range values {
			fs = append(fs, call.Field{Name: name, Value: v})
		}
	}
	return fs
}

// managed names belong to one gRPC connection, not to the call.
func managed(name string) bool {
	switch name {
	case "content-type", "user-agent", "te", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding",
		"grpc-status", "grpc-message", "grpc-status-details-bin", "content-length", "connection":
		return true
	}
	return false
}

// carriable reports what gRPC lets through as metadata. It fails whole calls over anything else,
// and HTTP headers may be more.
func carriable(name, value string) bool {
	if name == "" {
		return false
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		if !(c == '-' || c == '_' || c == '.' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z') {
			return false
		}
	}
	if strings.HasSuffix(name, "-bin") {
		return true
	}
	for i := 0; i < len(value); i++ {
		if value[i] < 0x20 || value[i] > 0x7e {
			return false
		}
	}
	return true
}

// metadataOf turns fields into metadata, with lower-case names.
func metadataOf(fs call.Fields) metadata.MD {
	md := make(metadata.MD, len(fs))
	for i := range fs {
		name := lower(fs[i].Name)
		if managed(name) || !carriable(name, fs[i].Value) {
			continue
		}
		md[name] = append(md[name], fs[i].Value)
	}
	return md
}

func lower(s string) string {
	for i := 0; i < len(s); i++ {
		if 'A' <= s[i] && s[i] <= 'Z' {
			return strings.ToLower(s)
		}
	}
	return s
}

// Names of the trailing fields in which a proxied call's status travels.
const (
	trailerStatus  = "grpc-status"
	trailerMessage = "grpc-message"
	trailerDetails = "grpc-status-details-bin"
)

// statusTrailer writes a status behind the app's own trailers, undecorated: texts and details
// are encoded at the edge.
func statusTrailer(md metadata.MD, st *status.Status) call.Fields {
	return appendStatus(fieldsOf(md, nil), st)
}

func appendStatus(fs call.Fields, st *status.Status) call.Fields {
	fs.Add(trailerStatus, codeText(st.Code()))
	if st.Code() == codes.OK {
		return fs
	}
	if st.Message() != "" {
		fs.Add(trailerMessage, st.Message())
	}
	if p := st.Proto(); len(p.GetDetails()) > 0 {
		if raw, err := proto.Marshal(p); err == nil {
			fs.Add(trailerDetails, string(raw))
		}
	}
	return fs
}

// permanent are the HTTP headers that Dapr calls permanent: as gRPC metadata they get the
// prefix "dapr-".
var permanent = map[string]bool{}

func init() {
	for _, h := range []string{"Accept", "Accept-Charset", "Accept-Language", "Accept-Ranges", "Cache-Control",
		"Connection", "Content-Type", "Content-Length", "Cookie", "Date", "Expect", "From", "Host", "If-Match", "If-Modified-Since",
		"If-None-Match", "If-Schedule-Tag-Match", "If-Unmodified-Since", "Keep-Alive", "Max-Forwards", "Origin", "Pragma",
		"Proxy-Connection", "Referer", "Transfer-Encoding", "Upgrade", "Via", "Warning"} {
		permanent[strings.ToLower(h)] = true
	}
}

// prefixed turns HTTP headers into metadata for a gRPC app or caller: permanent headers as
// dapr-<name>, others as they are.
func prefixed(fs call.Fields, md metadata.MD) metadata.MD {
	for i := range fs {
		name := lower(fs[i].Name)
		if permanent[name] {
			name = "dapr-" + name
		} else if managed(name) {
			continue
		}
		if carriable(name, fs[i].Value) {
			md[name] = append(md[name], fs[i].Value)
		}
	}
	return md
}
