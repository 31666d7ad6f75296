package group

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// Entries of the ledger. All but the progress lie under one prefix, which every member watches;
// the progress changes several times a second and is nobody's business but the owner's.
const (
	spaceGroup    = "group"
	spaceProgress = "progress"

	kindPulse   = "pulse"
	kindSeat    = "seat"
	kindOwner   = "owner"
	kindCommand = "command"
)

// recordVersion is in every entry. An entry of another version is left alone: what it says is
// not known, so what it is about counts as taken.
const recordVersion = 1

func watchPrefix(group string) string { return block.LedgerPrefix(spaceGroup, group) }

func pulseKey(group, member string) string {
	return block.LedgerKey(spaceGroup, group, kindPulse, member)
}

func seatKey(group, seat string) string { return block.LedgerKey(spaceGroup, group, kindSeat, seat) }

func ownerKey(group string, p Part) string {
	return block.LedgerKey(spaceGroup, group, kindOwner, p.Topic, strconv.Itoa(int(p.ID)))
}

func commandKey(group string, p Part) string {
	return block.LedgerKey(spaceGroup, group, kindCommand, p.Topic, strconv.Itoa(int(p.ID)))
}

func progressKey(group string, p Part) string {
	return block.LedgerKey(spaceProgress, group, p.Topic, strconv.Itoa(int(p.ID)))
}

// splitKey tells what an entry under the watched prefix is about: a member or seat (name), or a
// partition. ok is false for keys that are not ours.
func splitKey(group, key string) (kind, name string, p Part, ok bool) {
	parts := block.LedgerParts(key)
	if len(parts) < 4 || parts[0] != spaceGroup || parts[1] != group {
		return "", "", Part{}, false
	}
	switch kind = parts[2]; {
	case (kind == kindPulse || kind == kindSeat) && len(parts) == 4:
		return kind, parts[3], Part{}, true
	case (kind == kindOwner || kind == kindCommand) && len(parts) == 5:
		id, err := strconv.ParseInt(parts[4], 10, 32)
		if err != nil || id < 0 {
			return "", "", Part{}, false
		}
		return kind, "", Part{Topic: parts[3], ID: int32(id)}, true
	}
	return "", "", Part{}, false
}

// pulseRecord is a member's heartbeat: that it changes is all that counts.
type pulseRecord struct {
	Version int    `json:"v"`
	TTL     int64  `json:"ttl_ms"` // after what silence the member counts as dead
	Beat    uint64 `json:"beat"`
}

func (r pulseRecord) ttl() time.Duration { return time.Duration(r.TTL) * time.Millisecond }

// seatRecord is a consumer's place in the group.
type seatRecord struct {
	Version     int      `json:"v"`
	Member      string   `json:"member"`
	Incarnation string   `json:"incarnation"`
	Joined      uint64   `json:"joined"` // orders the seats of a group
	Topics      []string `json:"topics,omitempty"`
	Manual      []Part   `json:"manual,omitempty"`
	Leaving     bool     `json:"leaving,omitempty"`
}

// ownerRecord says whose a partition is. It is never removed, so that epochs never repeat.
type ownerRecord struct {
	Version     int    `json:"v"`
	Seat        string `json:"seat,omitempty"` // empty: nobody's
	Incarnation string `json:"incarnation,omitempty"`
	Epoch       uint64 `json:"epoch"`
	Drained     bool   `json:"drained,omitempty"`
}

func encode(v any) []byte {
	out, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return out
}

func parsePulse(b []byte) (pulseRecord, error) {
	var r pulseRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return pulseRecord{}, fmt.Errorf("a heartbeat: %w", err)
	}
	if r.Version != recordVersion {
		return pulseRecord{}, fmt.Errorf("a heartbeat of version %d, want %d", r.Version, recordVersion)
	}
	if r.TTL <= 0 || r.TTL > math.MaxInt64/int64(time.Millisecond) {
		return pulseRecord{}, fmt.Errorf("a heartbeat with a ttl of %d ms", r.TTL)
	}
	return r, nil
}

func parseSeat(b []byte) (seatRecord, error) {
	var r seatRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return seatRecord{}, fmt.Errorf("a seat: %w", err)
	}
	if r.Version != recordVersion {
		return seatRecord{}, fmt.Errorf("a seat of version %d, want %d", r.Version, recordVersion)
	}
	if r.Member == "" || r.Incarnation == "" {
		return seatRecord{}, errors.New("a seat without a member or an incarnation")
	}
	return r, nil
}

func parseOwner(b []byte) (ownerRecord, error) {
	var r ownerRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return ownerRecord{}, fmt.Errorf("an owner: %w", err)
	}
	if r.Version != recordVersion {
		return ownerRecord{}, fmt.Errorf("an owner of version %d, want %d", r.Version, recordVersion)
	}
	return r, nil
}

// encodeProgress is a byte for the version, one that says whether there is a body, the epoch in
// eight bytes, the body.
func encodeProgress(epoch uint64, body []byte) []byte {
	out := make([]byte, 10, 10+len(body))
	out[0] = recordVersion
	if body != nil {
		out[1] = 1
	}
	binary.BigEndian.PutUint64(out[2:], epoch)
	return append(out, body...)
}

// parseProgress is the inverse of encodeProgress. body is nil when nobody committed yet; it
// shares the memory of b.
func parseProgress(b []byte) (epoch uint64, body []byte, err error) {
	switch {
	case len(b) < 10:
		return 0, nil, fmt.Errorf("a progress of %d bytes, want at least 10", len(b))
	case b[0] != recordVersion:
		return 0, nil, fmt.Errorf("a progress of version %d, want %d", b[0], recordVersion)
	case b[1] > 1, b[1] == 0 && len(b) > 10:
		return 0, nil, errors.New("a progress that says neither yes nor no to a body")
	}
	if b[1] == 1 {
		body = b[10:len(b):len(b)]
	}
	return binary.BigEndian.Uint64(b[2:10]), body, nil
}
