package embedded

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	// reserve is what a node leaves free of its disk, in bytes: room to remove things in, and to
	// start in. On a small disk it is an eighth.
	reserve = 16 << 20
	// A look at the disk is due after that many bytes from clients, or when they send something
	// that long after the last one.
	lookBytes = 256 << 10
	lookAfter = 20 * time.Millisecond
)

// room keeps the last of the disk for what makes room. While less than the reserve is free the
// server stores nothing and says so; reading and removing go on. A write that met the end of the
// disk would end the node instead (see sick).
//
// It looks when a client sends something and before that goes to the server, so an idle node does
// not wake for it, and the first request after there is room finds it.
type room struct {
	free   func() (free, size uint64, err error) // of the disk, in bytes
	refuse func(bool) error                      // makes the server refuse to store, or not
	log    *slog.Logger

	unseen atomic.Int64 // bytes since the last look
	last   atomic.Int64 // the last look, in Unix nanoseconds
	mu     sync.Mutex
	tight  bool // guarded by mu
}

// newRoom watches the disk of a server's directory.
func newRoom(d dir, srv *server.Server, log *slog.Logger) *room {
	refuse := func(on bool) error {
		var limits map[string]server.JetStreamAccountLimits // none
		if on {
			limits = map[string]server.JetStreamAccountLimits{"": {MaxMemory: -1, MaxStore: 1, MaxStreams: -1, MaxConsumers: -1,
				MaxAckPending: -1, MemoryMaxStreamBytes: -1, StoreMaxStreamBytes: -1}}
		}
		return srv.GlobalAccount().UpdateJetStreamLimits(limits)
	}
	return &room{free: func() (uint64, uint64, error) { return diskSpace(string(d)) }, refuse: refuse, log: log}
}

// sent is told of bytes that come from a client, before they go to the server.
func (r *room) sent(n int) {
	if now := time.Now().UnixNano(); r.unseen.Add(int64(n)) >= lookBytes || now-r.last.Load() >= int64(lookAfter) {
		r.look(now)
	}
}

func (r *room) look(now int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unseen.Store(0)
	r.last.Store(now)
	free, size, err := r.free()
	if err != nil {
		return // the disk will tell when it is full
	}
	tight := free < min(reserve, size/8)
	if tight == r.tight {
		return
	}
	if err := r.refuse(tight); err != nil {
		r.log.Error("cannot change whether writes are refused", "refuse", tight, "error", err)
		return
	}
	r.tight = tight
	if tight {
		r.log.Error("the disk is full: writes are refused until there is room", "free", free)
	} else {
		r.log.Info("there is room again", "free", free)
	}
}
