package embedded

import (
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"
)

func TestRoom(t *testing.T) {
	const gib = 1 << 30
	var free, size uint64 = gib, 100 * gib
	var looks int
	var diskErr, serverErr error
	var told []bool
	r := &room{log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		free:   func() (uint64, uint64, error) { looks++; return free, size, diskErr },
		refuse: func(on bool) error { told = append(told, on); return serverErr }}
	at := func(f, s uint64, tight bool) {
		t.Helper()
		free, size = f, s
		r.sent(lookBytes)
		if r.tight != tight {
			t.Errorf("%d of %d bytes free: tight is %v", f, s, r.tight)
		}
	}
	at(gib, 100*gib, false)
	at(reserve, 100*gib, false)
	if len(told) > 0 {
		t.Errorf("with room the server was told %v", told)
	}
	at(reserve-1, 100*gib, true)
	at(0, 100*gib, true)
	at(reserve, 100*gib, false)
	at(4<<20, 32<<20, false) // of a small disk an eighth
	at(4<<20-1, 32<<20, true)
	diskErr = errors.New("no such disk")
	at(gib, 100*gib, true) // as it was
	diskErr, serverErr = nil, errors.New("not now")
	at(gib, 100*gib, true)
	serverErr = nil
	at(gib, 100*gib, false)
	if len(told) != 5 {
		t.Errorf("the server was told %v, want on, off, on, off twice", told)
	}

	// Small requests in quick succession share a look.
	r.last.Store(time.Now().Add(time.Hour).UnixNano())
	before := looks
	for range 10 {
		r.sent(100)
	}
	if looks != before {
		t.Error("a look for every small request")
	}
	r.last.Store(time.Now().Add(-lookAfter).UnixNano())
	r.sent(1)
	if looks != before+1 {
		t.Errorf("%d looks when one was due", looks-before)
	}
}

func TestDiskSpace(t *testing.T) {
	free, size, err := diskSpace(t.TempDir())
	if err != nil || size == 0 || free > size {
		t.Errorf("%d of %d bytes free, %v", free, size, err)
	}
	if _, _, err := diskSpace("/no/such/directory"); err == nil {
		t.Error("a directory that does not exist has space")
	}
}
