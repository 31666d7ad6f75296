package group

import (
	"bytes"
	"testing"
)

func TestKeys(t *testing.T) {
	p := Part{Topic: "a||b|%c", ID: 7}
	for _, tt := range []struct {
		key, kind, name string
		part            Part
	}{
		{pulseKey("g|", "m|1"), kindPulse, "m|1", Part{}},
		{seatKey("g|", ""), kindSeat, "", Part{}},
		{ownerKey("g|", p), kindOwner, "", p},
		{commandKey("g|", p), kindCommand, "", p},
	} {
		kind, name, part, ok := splitKey("g|", tt.key)
		if !ok || kind != tt.kind || name != tt.name || part != tt.part {
			t.Errorf("%q became %q %q %v %v", tt.key, kind, name, part, ok)
		}
		if !bytes.HasPrefix([]byte(tt.key), []byte(watchPrefix("g|"))) {
			t.Errorf("%q is not watched", tt.key)
		}
	}
	for _, key := range []string{"", "group||g|", progressKey("g|", p), pulseKey("other", "m"), "group||g%7C||owner||t||-1",
		"group||g%7C||owner||t||x", "group||g%7C||owner||t", "group||g%7C||new||t"} {
		if kind, _, _, ok := splitKey("g|", key); ok {
			t.Errorf("%q is taken for a %s", key, kind)
		}
	}
}

func TestProgress(t *testing.T) {
	for _, body := range [][]byte{nil, {}, []byte("x")} {
		epoch, got, err := parseProgress(encodeProgress(1<<40, body))
		if err != nil || epoch != 1<<40 || !bytes.Equal(got, body) || (got == nil) != (body == nil) {
			t.Errorf("%v became %d %v %v", body, epoch, got, err)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 10), {1, 2, 0, 0, 0, 0, 0, 0, 0, 0}, {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, {2, 1, 0, 0, 0, 0, 0, 0, 0, 0}} {
		if _, _, err := parseProgress(b); err == nil {
			t.Errorf("%v passes for a progress", b)
		}
	}
}

func FuzzRecords(f *testing.F) {
	f.Add(encodeProgress(3, []byte("x")))
	f.Add(encode(pulseRecord{Version: 1, TTL: 3000}))
	f.Add(encode(seatRecord{Version: 1, Member: "m", Incarnation: "i", Topics: []string{"t"}, Manual: []Part{{"t", 1}}}))
	f.Add(encode(ownerRecord{Version: 1, Seat: "s", Incarnation: "i", Epoch: 4, Drained: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if epoch, body, err := parseProgress(b); err == nil && !bytes.Equal(encodeProgress(epoch, body), b) {
			t.Errorf("%v is read as %d %v", b, epoch, body)
		}
		if r, err := parsePulse(b); err == nil {
			if again, err := parsePulse(encode(r)); err != nil || again != r || r.ttl() <= 0 {
				t.Errorf("%s is read as %+v", b, r)
			}
		}
		if r, err := parseSeat(b); err == nil {
			if again, err := parseSeat(encode(r)); err != nil || !bytes.Equal(encode(again), encode(r)) {
				t.Errorf("%s is read as %+v", b, r)
			}
		}
		if r, err := parseOwner(b); err == nil {
			if again, err := parseOwner(encode(r)); err != nil || again != r {
				t.Errorf("%s is read as %+v", b, r)
			}
		}
	})
}
