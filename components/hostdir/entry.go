package hostdir

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"

	"github.com/mecha-project/mecha/components/block"
)

// format is the version of the file format. A reader skips files of a newer one.
const format = 1

// maxEntryBytes bounds a file: a valid instance takes less than half of it, even when
// every byte of it is escaped.
const maxEntryBytes = 32 << 10

// entry is the content of a file, as JSON.
type entry struct {
	Format    int               `json:"format"`
	ID        string            `json:"id"`
	App       string            `json:"app"`
	Namespace string            `json:"namespace"`
	Address   string            `json:"address"`
	Protocol  string            `json:"protocol,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Weight    int               `json:"weight,omitempty"`
	Stamp     int64             `json:"stamp"` // Unix nanoseconds; the later of two files of one id counts
	PID       int               `json:"pid"`   // for people only
}

func newEntry(in block.Instance, stamp int64, pid int) entry {
	return entry{Format: format, ID: in.ID, App: in.App, Namespace: in.Namespace, Address: in.Address,
		Protocol: in.Protocol, Labels: maps.Clone(in.Labels), Weight: in.Weight, Stamp: stamp, PID: pid}
}

func (e entry) instance() block.Instance {
	return block.Instance{ID: e.ID, App: e.App, Namespace: e.Namespace, Address: e.Address,
		Protocol: e.Protocol, Labels: e.Labels, Weight: e.Weight}
}

// Name is the name the entry answers to.
func (e entry) Name() block.Name { return block.Name{App: e.App, Namespace: e.Namespace} }

// parseEntry reads a file's content. Unknown fields are allowed: they are how a format
// grows without a new number.
func parseEntry(data []byte) (entry, error) {
	var e entry
	if len(data) > maxEntryBytes {
		return e, fmt.Errorf("it is longer than %d bytes", maxEntryBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&e); err != nil {
		return entry{}, fmt.Errorf("it is not a registry entry: %w", err)
	}
	switch {
	case e.Format > format:
		return entry{}, fmt.Errorf("it has format %d and this version reads up to %d; a newer mecha wrote it", e.Format, format)
	case e.Format < 1:
		return entry{}, errors.New(`it is not a registry entry: "format" is missing`)
	case dec.More():
		return entry{}, errors.New("it is not a registry entry: data follows the object")
	}
	if err := e.instance().Validate(); err != nil {
		return entry{}, err
	}
	return e, nil
}

// File names: 16 hex digits of a hash of the app's name, so that a lookup opens the files
// of its own app only, and 16 random ones, so that no name is ever used twice.
var (
	entryFile = regexp.MustCompile(`^[0-9a-f]{16}-[0-9a-f]{16}\.json$`)
	draftFile = regexp.MustCompile(`^draft-[0-9a-f]{16}$`)
)

func namePrefix(n block.Name) string {
	sum := sha256.Sum256([]byte(n.Namespace + "\x00" + n.App))
	return hex.EncodeToString(sum[:8])
}

func entryName(n block.Name) string { return namePrefix(n) + "-" + random() + ".json" }

func draftName() string { return "draft-" + random() }

func random() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
