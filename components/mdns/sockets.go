package mdns

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const port = 5353

var (
	group4 = net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: port}
	group6 = net.UDPAddr{IP: net.ParseIP("ff02::fb"), Port: port}
)

// sockets are our places in the multicast group: one socket per IP version, joined on every
// interface in use.
type sockets struct {
	names []string // interfaces asked for; empty means all
	links []*link
	log   *slog.Logger

	mu         sync.Mutex
	interfaces []net.Interface // guarded by mu; joined
	nets       []net.IPNet     // guarded by mu; our addresses with their networks, on all interfaces
}

// link is the socket of one IP version.
type link struct {
	conn  *net.UDPConn
	group net.UDPAddr
	join  func(*net.Interface) error
	via   func(*net.Interface) error // chooses the interface to send by

	mu sync.Mutex // held from via to the send
}

// openSockets joins the group wherever possible. One place is enough.
func openSockets(names []string, family string, log *slog.Logger) (*sockets, error) {
	s := &sockets{names: names, log: log}
	usable, nets, err := survey(names)
	if err != nil {
		return nil, err
	}
	s.nets = nets
	var errs []error
	for _, open := range []struct {
		family string
		link   func(*net.Interface) (*link, error)
	}{{"ipv4", link4}, {"ipv6", link6}} {
		if family != "any" && family != open.family {
			continue
		}
		for _, ifi := range usable {
			l, err := open.link(&ifi)
			if err == nil {
				s.links = append(s.links, l)
				break
			}
			errs = append(errs, fmt.Errorf("%s on %s: %w", open.family, ifi.Name, err))
		}
	}
	if len(s.links) == 0 {
		return nil, errors.Join(errs...)
	}
	s.joinAll(usable)
	return s, nil
}

func link4(ifi *net.Interface) (*link, error) {
	conn, err := net.ListenMulticastUDP("udp4", ifi, &group4)
	if err != nil {
		return nil, err
	}
	p := ipv4.NewPacketConn(conn)
	l := &link{conn: conn, group: group4, via: p.SetMulticastInterface,
		join: func(ifi *net.Interface) error { return p.JoinGroup(ifi, &net.UDPAddr{IP: group4.IP}) }}
	// Other sidecars of this host are to hear us too; 255 is what RFC 6762 asks for.
	return l, l.ready(errors.Join(p.SetMulticastLoopback(true), p.SetMulticastTTL(255)))
}

func link6(ifi *net.Interface) (*link, error) {
	conn, err := net.ListenMulticastUDP("udp6", ifi, &group6)
	if err != nil {
		return nil, err
	}
	p := ipv6.NewPacketConn(conn)
	l := &link{conn: conn, group: group6, via: p.SetMulticastInterface,
		join: func(ifi *net.Interface) error { return p.JoinGroup(ifi, &net.UDPAddr{IP: group6.IP}) }}
	return l, l.ready(errors.Join(p.SetMulticastLoopback(true), p.SetMulticastHopLimit(255)))
}

func (l *link) ready(err error) error {
	if err != nil {
		_ = l.conn.Close()
	}
	return err
}

// survey finds the interfaces to use, and our addresses.
func survey(names []string) (usable []net.Interface, nets []net.IPNet, err error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, nil, err
	}
	var loopback []net.Interface
	for _, ifi := range all {
		addrs, err := ifi.Addrs()
		if err != nil || ifi.Flags&net.FlagUp == 0 {
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				nets = append(nets, *n)
			}
		}
		switch {
		case len(names) > 0:
			if slices.Contains(names, ifi.Name) {
				usable = append(usable, ifi)
			}
		case ifi.Flags&net.FlagLoopback != 0:
			loopback = append(loopback, ifi)
		case ifi.Flags&net.FlagMulticast != 0:
			usable = append(usable, ifi)
		}
	}
	if len(usable) == 0 {
		usable = loopback
	}
	if len(usable) == 0 {
		err = errors.New("no network interface is up")
		if len(names) > 0 {
			err = fmt.Errorf("none of the interfaces %s is up", strings.Join(names, ", "))
		}
	}
	return usable, nets, err
}

// joinAll joins the interfaces that are new and tells whether there were any.
func (s *sockets) joinAll(usable []net.Interface) (fresh bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var joined []net.Interface
	for _, ifi := range usable {
		known := slices.ContainsFunc(s.interfaces, func(k net.Interface) bool { return k.Index == ifi.Index })
		if !known {
			for _, l := range s.links {
				// The first interface is joined already; a version may be off on some.
				if err := l.join(&ifi); err != nil {
					s.log.Debug("multicast group not joined", "interface", ifi.Name, "group", l.group.IP.String(), "error", err)
				}
			}
			fresh = true
		}
		joined = append(joined, ifi)
	}
	s.interfaces = joined
	return fresh
}

// lookAround follows changes of the host's network and tells whether we are to speak again.
func (s *sockets) lookAround() bool {
	usable, nets, err := survey(s.names)
	if err != nil {
		return false // no network now; keep what we have
	}
	s.mu.Lock()
	moved := !slices.EqualFunc(nets, s.nets, func(a, b net.IPNet) bool { return a.String() == b.String() })
	s.nets = nets
	s.mu.Unlock()
	return s.joinAll(usable) || moved
}

// onLink tells whether an address is a neighbour's or ours: multicast DNS never comes from
// farther away (RFC 6762, section 11).
func (s *sockets) onLink(ip net.IP) bool {
	if ip.IsLinkLocalUnicast() {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.nets, func(n net.IPNet) bool { return n.Contains(ip) })
}

// isOwn tells whether an address is one of this host.
func (s *sockets) isOwn(ip net.IP) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.nets, func(n net.IPNet) bool { return n.IP.Equal(ip) })
}

// addressOf is our address on an interface, IPv4 if it has one. Nil when it has none.
func addressOf(ifi *net.Interface) net.IP {
	addrs, err := ifi.Addrs()
	if err != nil {
		return nil
	}
	var six net.IP
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		switch {
		case !ok:
		case n.IP.To4() != nil:
			return n.IP
		case six == nil && !n.IP.IsLinkLocalUnicast(): // link-local needs a zone, which DNS cannot carry
			six = n.IP
		}
	}
	return six
}

// addressFor is our address in the network of a neighbour.
func (s *sockets) addressFor(neighbour net.IP) net.IP {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nets {
		if n.Contains(neighbour) {
			return n.IP
		}
	}
	return nil
}

// send multicasts a message, made for each interface (nil: none there), by all interfaces
// and IP versions.
// One that leaves is success.
func (s *sockets) send(message func(*net.Interface) *wire.Msg) error {
	s.mu.Lock()
	interfaces := slices.Clone(s.interfaces)
	s.mu.Unlock()
	var errs []error
	sent := false
	for _, ifi := range interfaces {
		m := message(&ifi)
		if m == nil {
			continue
		}
		data, err := m.Pack()
		if err != nil {
			return err
		}
		for _, l := range s.links {
			if err := l.multicast(&ifi, data); err != nil {
				errs = append(errs, fmt.Errorf("multicast by %s: %w", ifi.Name, err))
				continue
			}
			sent = true
		}
	}
	if sent {
		return nil
	}
	return errors.Join(append(errs, errors.New("multicast DNS packet could not be sent by any interface"))...)
}

func (l *link) multicast(ifi *net.Interface, data []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.via(ifi); err != nil {
		return err
	}
	to := l.group
	if to.IP.To4() == nil {
		to.Zone = ifi.Name
	}
	_, err := l.conn.WriteToUDP(data, &to)
	return err
}

// reply answers an asker who is no full participant, in the way of ordinary DNS (RFC 6762,
// section 6.7).
func (l *link) reply(question, answer *wire.Msg, to *net.UDPAddr) {
	if answer == nil {
		return
	}
	answer.Id, answer.Question = question.Id, question.Question
	for _, section := range [][]wire.RR{answer.Answer, answer.Extra} {
		for _, rr := range section {
			rr.Header().Class &^= flush
		}
	}
	if data, err := answer.Pack(); err == nil {
		_, _ = l.conn.WriteToUDP(data, to) // it asks again
	}
}

// receive reads packets until the socket is closed.
func (l *link) receive(handle func(*link, *wire.Msg, *net.UDPAddr)) {
	buf := make([]byte, 9000) // the largest packet of RFC 6762, section 17
	for {
		n, from, err := l.conn.ReadFromUDP(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // a passing trouble must not spin
			continue
		}
		m := new(wire.Msg)
		if m.Unpack(buf[:n]) == nil && m.Opcode == wire.OpcodeQuery && m.Rcode == 0 {
			handle(l, m, from)
		}
	}
}

func (s *sockets) close() {
	for _, l := range s.links {
		_ = l.conn.Close()
	}
}
