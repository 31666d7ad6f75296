package nats

import (
	"strconv"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// version is what the stream holds for a key.
type version struct {
	seq     uint64 // 0: nothing
	gone    bool   // a marker
	expires time.Time
	value   []byte
}

func (v *version) live() bool {
	return v.seq != 0 && !v.gone && (v.expires.IsZero() || time.Now().Before(v.expires))
}

func (v *version) item(key string) block.StateItem {
	if !v.live() {
		return block.StateItem{Key: key}
	}
	return block.StateItem{Key: key, Exists: true, Value: v.value, ETag: v.etag(), Expires: v.expires}
}

// read takes what a message's headers say.
func (v *version) read(h natsgo.Header) {
	if len(h[headerOp]) > 0 || len(h["Nats-Marker-Reason"]) > 0 {
		v.gone = true
	}
	if e := h[headerExpiry]; len(e) > 0 {
		if ms, err := strconv.ParseInt(e[0], 10, 64); err == nil {
			v.expires = time.UnixMilli(ms)
		}
	}
}

// parseVersion reads the answer to a read.
func parseVersion(op fault.Op, m *natsgo.Msg) (version, error) {
	if status := statusOf(m); status != "" {
		if status == "404" {
			return version{}, nil
		}
		return version{}, fault.New(op, fault.Unavailable, "the server answers a read with %s %s", status, m.Header.Get("Description"))
	}
	v := version{value: m.Data}
	if h := m.Header[headerSequence]; len(h) > 0 {
		v.seq, _ = strconv.ParseUint(h[0], 10, 64)
	}
	if v.seq == 0 {
		return version{}, fault.New(op, fault.Internal, "the server answers a read without a sequence")
	}
	v.read(m.Header)
	return v, nil
}

// etag is the sequence, and the end of the item if it has one: a conditional write can so be
// refused after the end although the server has not dropped the item yet.
func (v *version) etag() string {
	if v.expires.IsZero() {
		return strconv.FormatUint(v.seq, 36)
	}
	return strconv.FormatUint(v.seq, 36) + "." + strconv.FormatInt(v.expires.UnixMilli(), 36)
}

// parseETag is the inverse of etag; it accepts exactly what etag writes.
func parseETag(op fault.Op, etag string) (version, error) {
	var v version
	text, end, expires := strings.Cut(etag, ".")
	v.seq, _ = strconv.ParseUint(text, 36, 64)
	if expires {
		ms, _ := strconv.ParseInt(end, 36, 64)
		v.expires = time.UnixMilli(ms)
	}
	if v.seq == 0 || v.etag() != etag {
		return version{}, fault.New(op, fault.BadEtag, "etag %.40q was not issued by this store", etag)
	}
	return v, nil
}
