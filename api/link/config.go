package link

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// Config says how a session behaves. The zero value works: every zero field takes the value
// DefaultConfig gives it. A Config may be shared by many sessions; it is copied, never changed.
type Config struct {
	// Greeting is shown to the peer in the handshake, at most MaxGreeting bytes. It is opaque
	// here; edges put identity and tokens in it. It is never logged.
	Greeting []byte
	// Check judges the greeting of a dialling peer. An error refuses the session; its code and
	// text travel to the peer. Only NewServer calls it. Nil accepts everyone.
	Check func(greeting []byte) error
	// Prefix is what was already read from the connection, by Sniff's caller for example.
	Prefix []byte

	// Handler answers streams the peer opens, each on its own goroutine; the stream is over when
	// it returns. Nil refuses them with fault.Unsupported. A panic is logged and resets the
	// stream with fault.Internal.
	Handler func(*Stream)

	// MaxStreams bounds the streams the peer may have open at once; more are refused with
	// fault.Exhausted. Default 16384.
	MaxStreams int
	// MaxInflightBytes bounds heads and unread bodies held for the peer's streams; above it, new
	// streams are refused with fault.Exhausted. Default 32 MiB.
	MaxInflightBytes int64
	// MaxHead bounds one head, and one trailer, in bytes. Default 1 MiB.
	MaxHead int
	// MaxFrame bounds the payload of one frame in bytes, 4 KiB to 16 MiB. Default 64 KiB.
	MaxFrame int
	// StreamWindow is how many unread body bytes a new stream may hold. It grows up to
	// MaxStreamWindow on a stream whose reader empties it within two round trips.
	// Defaults 256 KiB and 4 MiB.
	StreamWindow, MaxStreamWindow int
	// SessionWindow is how many unread body bytes all streams together may hold. Default 64 MiB.
	SessionWindow int

	// PingInterval is how long nothing may arrive, while a stream is open, before the peer is
	// asked for a sign of life. It is checked once per interval, so a lost peer is given up after
	// at most two intervals and PingTimeout. No timer runs while no stream is open. Default 10 s.
	PingInterval time.Duration
	// PingTimeout is how long it may then stay silent before the session is given up. Default 20 s.
	PingTimeout time.Duration
	// WriteTimeout is how long one write may wait for the connection before the session is given
	// up: the peer always drains its side, so a full connection means it is gone. Default 20 s.
	WriteTimeout time.Duration
	// HandshakeTimeout bounds NewClient and NewServer, except for the time Check takes. Default 5 s.
	HandshakeTimeout time.Duration

	// Log receives the ends of sessions that broke, once each. Nil is silent.
	Log *slog.Logger

	minVersion, maxVersion uint16 // tests change them; zero means this build's
}

// DefaultConfig is what zero fields of a Config mean.
func DefaultConfig() Config {
	return Config{
		MaxStreams:       16 << 10,
		MaxInflightBytes: 32 << 20,
		MaxHead:          1 << 20,
		MaxFrame:         64 << 10,
		StreamWindow:     256 << 10,
		MaxStreamWindow:  4 << 20,
		SessionWindow:    64 << 20,
		PingInterval:     10 * time.Second,
		PingTimeout:      20 * time.Second,
		WriteTimeout:     20 * time.Second,
		HandshakeTimeout: 5 * time.Second,
		minVersion:       MinVersion,
		maxVersion:       MaxVersion,
	}
}

// filled returns c with defaults for zero fields, or what is wrong with it.
func (c Config) filled() (Config, error) {
	d := DefaultConfig()
	or(&c.MaxStreams, d.MaxStreams)
	or(&c.MaxInflightBytes, d.MaxInflightBytes)
	or(&c.MaxHead, d.MaxHead)
	or(&c.MaxFrame, d.MaxFrame)
	or(&c.StreamWindow, d.StreamWindow)
	or(&c.MaxStreamWindow, max(d.MaxStreamWindow, c.StreamWindow))
	or(&c.SessionWindow, d.SessionWindow)
	or(&c.PingInterval, d.PingInterval)
	or(&c.PingTimeout, d.PingTimeout)
	or(&c.WriteTimeout, d.WriteTimeout)
	or(&c.HandshakeTimeout, d.HandshakeTimeout)
	or(&c.minVersion, d.minVersion)
	or(&c.maxVersion, d.maxVersion)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, c.validate()
}

func (c *Config) validate() error {
	bad := func(format string, args ...any) error {
		return fault.New("link.config", fault.Invalid, "link: "+format, args...)
	}
	switch {
	case len(c.Greeting) > MaxGreeting:
		return bad("greeting of %d bytes is over %d", len(c.Greeting), MaxGreeting)
	case c.MaxFrame < minFrame || c.MaxFrame > maxFrame:
		return bad("MaxFrame %d is not within %d and %d", c.MaxFrame, minFrame, maxFrame)
	case !window(c.StreamWindow) || !window(c.SessionWindow) || !window(c.MaxStreamWindow) || c.MaxStreamWindow < c.StreamWindow:
		return bad("windows %d, %d, %d are not positive, below 2 GiB and in order", c.StreamWindow, c.MaxStreamWindow, c.SessionWindow)
	case !window(c.MaxStreams) || !window(c.MaxHead) || c.MaxInflightBytes < 0:
		return bad("MaxStreams %d, MaxHead %d or MaxInflightBytes %d is out of range", c.MaxStreams, c.MaxHead, c.MaxInflightBytes)
	case min(c.PingInterval, c.PingTimeout, c.WriteTimeout, c.HandshakeTimeout) < 0:
		return bad("a duration is negative: %s", fmt.Sprint(c.PingInterval, c.PingTimeout, c.WriteTimeout, c.HandshakeTimeout))
	}
	return nil
}

func window(n int) bool { return n > 0 && n <= maxCredit }

func or[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// hello is what we announce: our limits as a receiver.
func (c *Config) hello() *hello {
	return &hello{
		minVersion: c.minVersion, maxVersion: c.maxVersion, maxFrame: uint32(c.MaxFrame), maxStreams: uint32(c.MaxStreams),
		maxHead: uint32(c.MaxHead), streamWindow: uint32(c.StreamWindow), sessionWindow: uint32(c.SessionWindow), greeting: c.Greeting,
	}
}
