package grpcapi

import (
	"encoding/base64"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mecha-project/mecha/api/h2"
	"github.com/mecha-project/mecha/runtime/call"
)

// How gRPC uses HTTP/2 header fields: which are the protocol's own, binary values in base64,
// statuses, deadlines. Fields and metadata inside the house hold decoded values.

const (
	grpcType       = "application/grpc"
	encodingKey    = "grpc-encoding"
	acceptEncoding = "grpc-accept-encoding"
	timeoutKey     = "grpc-timeout"
	userAgentKey   = "user-agent"
)

// isGRPC reports a content type of gRPC.
func isGRPC(contentType string) bool {
	if len(contentType) < len(grpcType) || !strings.EqualFold(contentType[:len(grpcType)], grpcType) {
		return false
	}
	return len(contentType) == len(grpcType) || contentType[len(grpcType)] == '+' || contentType[len(grpcType)] == ';'
}

// incoming is a request's header as metadata, as handlers of grpc-go see it: without what the
// protocol itself uses, and with the authority.
func incoming(st *h2.Stream) metadata.MD {
	fs := st.Header()
	md := make(metadata.MD, len(fs)+1)
	values := make([]string, 1, len(fs)+1) // the slices of the map, for the usual case of one value each
	values[0] = st.Authority()
	md[":authority"] = values[0:1:1]
	for i := range fs {
		name, value := fs[i].Name, fs[i].Value
		old, again := md[name]
		switch {
		case ofProtocol(name):
		case strings.HasSuffix(name, "-bin"):
			eachValue(name, value, func(v string) { md[name] = append(md[name], v) })
		case again:
			md[name] = append(old, value)
		default:
			values = append(values, value)
			md[name] = values[len(values)-1 : len(values) : len(values)]
		}
	}
	return md
}

// ofProtocol names are no metadata of a request.
func ofProtocol(name string) bool {
	switch name {
	case "te", timeoutKey, encodingKey, trailerStatus, trailerMessage, "grpc-message-type", "host":
		return true
	}
	return false
}

// eachValue decodes a field: binary ones are base64, padded or not, and several may be joined
// by commas. One that cannot be decoded is left out.
func eachValue(name, value string, f func(string)) {
	if !strings.HasSuffix(name, "-bin") {
		f(value)
		return
	}
	for part := range strings.SplitSeq(value, ",") {
		if raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(part), "=")); err == nil {
			f(string(raw))
		}
	}
}

// wireFields adds what may travel of fs in its wire form. keep decides about names that are
// the protocol's own; nil leaves all of them out.
func wireFields(to, fs call.Fields, keep func(name string) bool) call.Fields {
	for i := range fs {
		name := lower(fs[i].Name)
		if managed(name) {
			if keep == nil || !keep(name) {
				continue
			}
		} else if !carriable(name, fs[i].Value) {
			continue
		}
		to = append(to, call.Field{Name: name, Value: wireValue(name, fs[i].Value)})
	}
	return to
}

// wireMetadata is wireFields of metadata.
func wireMetadata(to call.Fields, md metadata.MD) call.Fields {
	for name, values := range md {
		if name = lower(name); managed(name) {
			continue
		}
		for _, v := range values {
			if carriable(name, v) {
				to = append(to, call.Field{Name: name, Value: wireValue(name, v)})
			}
		}
	}
	return to
}

func wireValue(name, v string) string {
	if strings.HasSuffix(name, "-bin") {
		return base64.RawStdEncoding.EncodeToString([]byte(v))
	}
	return v
}

// plainFields takes fields off the wire, in place as far as they fit: decoded, without the
// protocol's own save those keep wants.
func plainFields(fs call.Fields, keep func(name string) bool) call.Fields {
	out := fs[:0]
	for i := range fs {
		f := fs[i]
		if managed(f.Name) && !keep(f.Name) {
			continue
		}
		if !strings.HasSuffix(f.Name, "-bin") {
			out = append(out, f)
			continue
		}
		if strings.Contains(f.Value, ",") { // rare: more values than fields
			out = append(make(call.Fields, 0, len(fs)+8), out...)
		}
		eachValue(f.Name, f.Value, func(v string) { out = append(out, call.Field{Name: f.Name, Value: v}) })
	}
	return out
}

// statusFields adds a status as it travels behind an answer.
func statusFields(to call.Fields, st *status.Status) call.Fields {
	to = append(to, call.Field{Name: trailerStatus, Value: codeText(st.Code())})
	if st.Code() == codes.OK {
		return to
	}
	if st.Message() != "" {
		to = append(to, call.Field{Name: trailerMessage, Value: escapeMessage(st.Message())})
	}
	if p := st.Proto(); len(p.GetDetails()) > 0 {
		if raw, err := proto.Marshal(p); err == nil {
			to = append(to, call.Field{Name: trailerDetails, Value: wireValue(trailerDetails, string(raw))})
		}
	}
	return to
}

func codeText(c codes.Code) string {
	if c == codes.OK {
		return "0"
	}
	return strconv.Itoa(int(c))
}

// codeOf reads the status of a trailer in its plain or its wire form.
func codeOf(fs call.Fields) (codes.Code, bool) {
	v, ok := fs.Lookup(trailerStatus)
	if !ok {
		return codes.Unknown, false
	}
	if v == "0" {
		return codes.OK, true
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		return codes.Unknown, true
	}
	return codes.Code(n), true
}

// wireStatus reads a status off the wire; false if there is none.
func wireStatus(fs call.Fields) (*status.Status, bool) {
	code, ok := codeOf(fs)
	if !ok {
		return nil, false
	}
	if code == codes.OK {
		return okStatus, true
	}
	if v := fs.Get(trailerDetails); v != "" {
		var p spb.Status
		raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(v, "="))
		if err == nil && proto.Unmarshal(raw, &p) == nil {
			return status.FromProto(&p), true
		}
	}
	return status.New(code, unescapeMessage(fs.Get(trailerMessage))), true
}

var okStatus = status.New(codes.OK, "")

const hexDigits = "0123456789ABCDEF"

// escapeMessage percent-encodes what a header field cannot carry.
func escapeMessage(s string) string {
	plain := true
	for i := 0; i < len(s) && plain; i++ {
		plain = s[i] >= ' ' && s[i] <= '~' && s[i] != '%'
	}
	if plain {
		return s
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	b := make([]byte, 0, len(s)+16)
	for i := 0; i < len(s); i++ {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b = append(b, c)
		} else {
			b = append(b, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(b)
}

// unescapeMessage undoes escapeMessage; what is no escape stays as it is.
func unescapeMessage(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b = append(b, byte(v))
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

var timeoutUnits = map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}

// parseTimeout reads grpc-timeout: at most eight digits and a unit.
func parseTimeout(s string) (time.Duration, bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	unit, ok := timeoutUnits[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 63)
	if !ok || err != nil {
		return 0, false
	}
	if n > uint64(math.MaxInt64/unit) {
		return math.MaxInt64, true
	}
	return time.Duration(n) * unit, true
}

// formatTimeout writes grpc-timeout in the finest unit that fits, rounded up.
func formatTimeout(d time.Duration) string {
	if d <= 0 {
		return "0n"
	}
	const most = 99999999
	for _, u := range []struct {
		name byte
		size time.Duration
	}{{'u', time.Microsecond}, {'m', time.Millisecond}, {'S', time.Second}, {'M', time.Minute}} {
		if n := (d + u.size - 1) / u.size; n <= most && n > 0 {
			var b [10]byte
			return string(append(strconv.AppendInt(b[:0], int64(n), 10), u.name))
		}
	}
	return strconv.FormatInt(int64(min(d/time.Hour+1, most)), 10) + "H"
}

// codeOfHTTP is the status of an answer that is not gRPC's.
func codeOfHTTP(httpStatus int) codes.Code {
	switch httpStatus {
	case 400, 431:
		return codes.Internal
	case 401:
		return codes.Unauthenticated
	case 403:
		return codes.PermissionDenied
	case 404:
		return codes.Unimplemented
	case 429, 502, 503, 504:
		return codes.Unavailable
	}
	return codes.Unknown
}

// codeOfReset is the status of a stream that the other side reset.
func codeOfReset(c h2.ErrCode) codes.Code {
	switch c {
	case h2.RefusedStream:
		return codes.Unavailable
	case h2.Cancel:
		return codes.Canceled
	case h2.EnhanceYourCalm:
		return codes.ResourceExhausted
	case h2.InadequateSecurity:
		return codes.PermissionDenied
	}
	return codes.Internal
}
