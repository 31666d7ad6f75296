// Package mdns is a registry for a local network without servers: instances announce
// themselves by multicast DNS (RFC 6762) in the form of DNS service discovery (RFC 6763),
// and whoever looks for an app asks the network.
//
// An announcement is withdrawn by a goodbye when its process ends in order. After a crash
// others believe it until its lifetime (Config.CacheTTL) has passed; in the meantime their
// health checks have to notice. Multicast DNS proves nobody's identity: use it only on
// networks whose every member may claim any name, or with mutual TLS between the peers.
//
// record.go has the layout of an announcement, sockets.go the network, browse.go what was
// heard. Start reading at registry.
package mdns

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"sync"
	"time"

	wire "github.com/miekg/dns"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

const doc = "Registry of a local network by multicast DNS: no server, no configuration."

// Backend lists the parts: a registry.
func Backend() block.Backend {
	return block.Backend{Name: "mdns", Doc: doc, Parts: []block.Part{
		block.RegistryPart("mdns", doc, DefaultConfig, New),
	}}
}

// Config configures the registry by multicast DNS.
type Config struct {
	// Address is the host, name or IP, to announce. Empty means the host of the peer
	// address; when that is a wildcard, $DAPR_HOST_IP, else the address of the interface
	// the announcement leaves by.
	Address string `yaml:"address"`
	// Interfaces are the names of the network interfaces to use. Empty means all that are up and
	// can multicast, without loopback; loopback alone when there is no other.
	Interfaces []string `yaml:"interfaces"`
	// Family limits the network to one IP version.
	Family string `yaml:"family" enum:"any,ipv4,ipv6"`
	// BrowseTimeout is how long the first lookup of an app waits for answers. A bare number
	// counts seconds.
	BrowseTimeout time.Duration `yaml:"browseTimeout" unit:"s"`
	// CacheTTL is how long an announcement is believed, here and by others, unless renewed.
	// Apps in use are asked for again before that. A bare number counts seconds.
	CacheTTL time.Duration `yaml:"cacheTTL" unit:"s"`
}

// DefaultConfig is the configuration with nothing set.
func DefaultConfig() *Config {
	return &Config{Family: "any", BrowseTimeout: time.Second, CacheTTL: time.Minute}
}

// Validate reports every mistake in the configuration.
func (c *Config) Validate() error {
	var errs []error
	if c.Address != "" && (block.Instance{ID: "x", App: "x", Address: net.JoinHostPort(c.Address, "1")}).Validate() != nil {
		errs = append(errs, conf.Bad("address", "%q is not a host name or address without port", c.Address))
	}
	if c.BrowseTimeout <= 0 {
		errs = append(errs, conf.Bad("browseTimeout", "%v is not a time to wait; want more than 0", c.BrowseTimeout))
	}
	if c.CacheTTL < time.Second {
		errs = append(errs, conf.Bad("cacheTTL", "%v is too short; want at least 1s", c.CacheTTL))
	}
	return errors.Join(errs...)
}

var (
	_ block.Registry        = (*registry)(nil)
	_ block.Registrar       = (*registry)(nil)
	_ block.RegistryWatcher = (*registry)(nil)
)

const (
	opPing       fault.Op = "mdns.registry.Ping"
	opResolve    fault.Op = "mdns.registry.Resolve"
	opRegister   fault.Op = "mdns.registry.Register"
	opDeregister fault.Op = "mdns.registry.Deregister"
	opWatch      fault.Op = "mdns.registry.Watch"
)

// registry speaks for this sidecar's instances and listens for those of the names in use.
type registry struct {
	log    *slog.Logger
	config Config
	heard  *book
	done   chan struct{}
	work   sync.WaitGroup // waits for every goroutine

	mu      sync.Mutex
	closed  bool                      // guarded by mu
	net     *sockets                  // guarded by mu; nil before the first use
	own     map[string]block.Instance // guarded by mu; by id
	spoken  map[string]time.Time      // guarded by mu; last announcement by id
	speaker chan struct{}             // guarded by mu; wakes the speaker; nil before the first Register
}

// New opens the registry. It opens no socket: the first use does.
func New(env block.Env, c *Config) (block.Registry, error) {
	if err := c.Validate(); err != nil {
		return nil, fault.Wrap("mdns.New", fault.Invalid, err)
	}
	return &registry{log: env.Log, config: *c, heard: newBook(c.CacheTTL), done: make(chan struct{}),
		own: map[string]block.Instance{}, spoken: map[string]time.Time{}}, nil
}

// network opens the sockets at the first use.
func (r *registry) network(ctx context.Context, op fault.Op) (*sockets, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(op, fault.Canceled, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, errClosed(op)
	}
	if r.net != nil {
		return r.net, nil
	}
	s, err := openSockets(r.config.Interfaces, r.config.Family, r.log)
	if err != nil {
		return nil, fault.New(op, fault.Unavailable,
			"multicast DNS cannot be used here; choose another name resolution, such as hostdir on one host").
			WithSent(fault.SentNever).Because(err)
	}
	r.net = s
	for _, l := range s.links {
		r.work.Go(func() { l.receive(r.packet) })
	}
	return s, nil
}

func errClosed(op fault.Op) error {
	return fault.New(op, fault.Unavailable, "the registry is closed").WithSent(fault.SentNever)
}

// Ping checks that multicast can be sent. It asks for a name that nobody has, so that nobody
// answers.
func (r *registry) Ping(ctx context.Context) error {
	s, err := r.network(ctx, opPing)
	if err != nil {
		return err
	}
	return fault.Wrap(opPing, fault.Unavailable, s.send(func(*net.Interface) *wire.Msg { return query(instanceLabel("ping") + "." + serviceType) }))
}

// packet handles one message from the network.
func (r *registry) packet(l *link, m *wire.Msg, from *net.UDPAddr) {
	r.mu.Lock()
	s := r.net
	r.mu.Unlock()
	if s == nil || !s.onLink(from.IP) {
		return
	}
	if m.Response {
		if from.Port == port { // RFC 6762, section 6
			r.learn(m, s.isOwn(from.IP))
		}
		return
	}
	r.answer(s, l, m, from)
}

// minGap is the least time between two announcements of one instance on request, so that
// questions from many cannot flood the network.
const minGap = 100 * time.Millisecond

// answer replies to the questions that concern us: by multicast, or straight to askers that
// are no full participants.
func (r *registry) answer(s *sockets, l *link, m *wire.Msg, from *net.UDPAddr) {
	legacy := from.Port != port
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock() // held while sending: a goodbye must come last
	for id, self := range r.own {
		if !asked(m.Question, self) || (!legacy && now.Sub(r.spoken[id]) < minGap) {
			continue
		}
		if legacy {
			l.reply(m, announcement(self, func() net.IP { return s.addressFor(from.IP) }, 10*time.Second), from)
			continue
		}
		r.spoken[id] = now
		if err := r.announce(s, self, r.config.CacheTTL); err != nil {
			r.log.Debug("answer by multicast DNS failed", "error", err)
		}
	}
}

// announce multicasts an instance, on each interface with the address that fits there. A
// ttl of zero is the goodbye.
func (r *registry) announce(s *sockets, self block.Instance, ttl time.Duration) error {
	return s.send(func(ifi *net.Interface) *wire.Msg {
		return announcement(self, func() net.IP { return addressOf(ifi) }, ttl)
	})
}

// Register announces self: now, once more a second later (packets get lost), when asked,
// and when the network changes.
func (r *registry) Register(ctx context.Context, self block.Instance) error {
	if err := self.Validate(); err != nil {
		return fault.Wrap(opRegister, fault.Invalid, err)
	}
	self.Labels = maps.Clone(self.Labels)
	self.Address = r.hostOf(self.Address)
	if err := fits(self); err != nil {
		return fault.Wrap(opRegister, fault.Invalid, err)
	}
	s, err := r.network(ctx, opRegister)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock() // held while sending: a goodbye must come last
	if r.closed {
		return errClosed(opRegister)
	}
	old, replaced := r.own[self.ID]
	r.own[self.ID], r.spoken[self.ID] = self, time.Now()
	if r.speaker == nil {
		r.speaker = make(chan struct{}, 1)
		r.work.Go(func() { r.speak(s, r.speaker) })
	}
	select {
	case r.speaker <- struct{}{}:
	default:
	}
	if replaced && old.Name() != self.Name() {
		_ = r.announce(s, old, 0) // best effort: it ends by itself
	}
	return fault.Wrap(opRegister, fault.Unavailable, r.announce(s, self, r.config.CacheTTL))
}

// hostOf applies the rules for the announced host; see Config.Address. A wildcard stays
// where each interface has to fill in its own.
func (r *registry) hostOf(address string) string {
	host, port, _ := net.SplitHostPort(address) // validated
	if r.config.Address != "" {
		host = r.config.Address
	} else if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if env := os.Getenv("DAPR_HOST_IP"); env != "" {
			host = env
		}
	}
	return net.JoinHostPort(host, port)
}

const (
	repeatAfter = time.Second      // RFC 6762, section 8.3
	lookAround  = 30 * time.Second // how soon a new network interface is noticed
)

// speak repeats fresh announcements once and speaks up on interfaces that appear. It is the
// one part of the registry with a periodic wake-up, and runs only while registered.
func (r *registry) speak(s *sockets, wake <-chan struct{}) {
	timer := time.NewTimer(repeatAfter)
	defer timer.Stop()
	repeat := true
	for {
		select {
		case <-r.done:
			return
		case <-wake:
			repeat = true
			timer.Reset(repeatAfter)
			continue
		case <-timer.C:
		}
		if s.lookAround() || repeat {
			repeat = false
			r.mu.Lock()
			own := maps.Clone(r.own)
			r.mu.Unlock()
			for _, self := range own {
				r.repeatOne(s, self)
			}
		}
		timer.Reset(lookAround)
	}
}

// repeatOne announces unless the instance was withdrawn meanwhile.
func (r *registry) repeatOne(s *sockets, self block.Instance) {
	r.mu.Lock()
	defer r.mu.Unlock() // held while sending: a goodbye must come last
	if now, still := r.own[self.ID]; !still || now.Address != self.Address || now.Name() != self.Name() {
		return
	}
	if err := r.announce(s, self, r.config.CacheTTL); err != nil {
		r.log.Warn("announcement by multicast DNS failed", "error", err)
	}
}

// Deregister says goodbye for everything registered here.
func (r *registry) Deregister(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(opDeregister, fault.Canceled, err)
	}
	return fault.Wrap(opDeregister, fault.Unavailable, r.withdraw())
}

func (r *registry) withdraw() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, self := range r.own {
		for range 2 { // packets get lost, and nobody asks for a goodbye
			errs = append(errs, r.announce(r.net, self, 0))
		}
	}
	clear(r.own)
	clear(r.spoken)
	return errors.Join(errs...)
}

// Close says goodbye, closes the sockets and ends running watches. A goodbye that cannot be
// sent is no error: the announcement ends by itself.
func (r *registry) Close(context.Context) error {
	if err := r.withdraw(); err != nil {
		r.log.Debug("goodbye by multicast DNS failed", "error", err)
	}
	r.mu.Lock()
	if !r.closed {
		r.closed = true
		close(r.done)
	}
	s := r.net
	r.mu.Unlock()
	if s != nil {
		s.close()
	}
	r.work.Wait()
	return nil
}
