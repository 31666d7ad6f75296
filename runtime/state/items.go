package state

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// Item is one write or removal as a caller asks for it.
type Item struct {
	Key   string
	Value []byte // as stored; an edge turns a missing JSON value into null
	// JSON says that Value is JSON text, which a wire made sure of; so may the contentType.
	JSON bool
	// ETag makes the operation conditional; empty means it is not.
	ETag string
	// Metadata may hold ttlInSeconds and contentType; other entries are ignored. Names compare
	// without regard to case.
	Metadata map[string]string
	// Concurrency is "", "first-write" or "last-write"; Consistency "", "strong" or "eventual".
	Concurrency, Consistency string
}

const (
	firstWrite = "first-write"
	lastWrite  = "last-write"
	strong     = "strong"
	eventual   = "eventual"
)

// write checks an item and makes the store's write of it.
func (s *Service) write(info catalog.Info, item *Item) (block.StateWrite, error) {
	w := block.StateWrite{Value: item.Value, ETag: item.ETag,
		FirstWrite: item.Concurrency == firstWrite, Strong: item.Consistency == strong}
	var err error
	if w.Key, err = s.scope(info, item.Key); err != nil {
		return w, err
	}
	if err = checkOptions(item); err != nil {
		return w, err
	}
	if w.TTL, err = ttl(item.Metadata); err != nil {
		return w, err
	}
	declared, err := checkValue(item)
	w.JSON = item.JSON || declared
	return w, err
}

// removal checks an item and makes the store's removal of it.
func (s *Service) removal(info catalog.Info, item Item) (block.StateDelete, error) {
	key, err := s.scope(info, item.Key)
	if err == nil {
		err = checkOptions(&item)
	}
	return block.StateDelete{Key: key, ETag: item.ETag}, err
}

func checkOptions(item *Item) error {
	switch item.Concurrency {
	case "", firstWrite, lastWrite:
	default:
		return fault.New("state.options", fault.Invalid, "unrecognized concurrency model '%s'", item.Concurrency).With(BadOption)
	}
	switch item.Consistency {
	case "", strong, eventual:
		return nil
	}
	return fault.New("state.options", fault.Invalid, "unrecognized consistency model '%s'", item.Consistency).With(BadOption)
}

// ttl reads ttlInSeconds. Absent, 0 and -1 mean no expiry.
func ttl(metadata map[string]string) (time.Duration, error) {
	text, ok := lookup(metadata, "ttlInSeconds")
	if !ok || text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 32)
	switch {
	case err != nil:
		return 0, fault.New("state.ttl", fault.Invalid,
			"error parsing TTL: value for ttlInSeconds must be an integer number of seconds, got '%s'", text).With(fault.BadMetadata)
	case n < -1:
		return 0, fault.New("state.ttl", fault.Invalid,
			"error parsing TTL: value for ttlInSeconds must be -1 or greater, got %d", n).With(fault.BadMetadata)
	case n <= 0:
		return 0, nil
	}
	return time.Duration(n) * time.Second, nil
}

// checkValue holds a value to the content type its metadata declares, and tells whether that is
// JSON. The error's text is the JSON parser's own, for that is what Dapr's callers see.
func checkValue(item *Item) (declared bool, err error) {
	ct, ok := lookup(item.Metadata, "contentType")
	if !ok {
		return false, nil
	}
	if cut := strings.IndexByte(ct, ';'); cut >= 0 {
		ct = ct[:cut]
	}
	if !strings.EqualFold(ct, "application/json") {
		return false, nil
	}
	var parsed json.RawMessage
	if err := json.Unmarshal(item.Value, &parsed); err != nil {
		return false, fault.New("state.value", fault.Invalid, "%s", err.Error()).With(BadValue)
	}
	return true, nil
}

func lookup(metadata map[string]string, name string) (string, bool) {
	if len(metadata) == 0 {
		return "", false
	}
	if v, ok := metadata[name]; ok {
		return v, true
	}
	for k, v := range metadata {
		if strings.EqualFold(k, name) {
			return v, true
		}
	}
	return "", false
}
