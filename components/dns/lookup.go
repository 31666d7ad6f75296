package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	wire "github.com/miekg/dns"
)

// asker puts questions to name servers over UDP, and over TCP when an answer is cut. It has
// no state: /etc/resolv.conf is read anew for each lookup, so a changed network is noticed.
type asker struct {
	fixed   []string // name servers from the configuration; empty means the system's
	timeout time.Duration
}

const (
	resolvConf = "/etc/resolv.conf"
	// udpSize is the answer size that passes the Internet unfragmented (DNS flag day 2020).
	udpSize = 1232
)

// servers gives the name servers to ask and the absolute names to try for host.
func (k asker) servers(host string) (servers, names []string, err error) {
	if len(k.fixed) > 0 {
		return k.fixed, []string{wire.Fqdn(host)}, nil
	}
	c, err := wire.ClientConfigFromFile(resolvConf)
	if err != nil {
		return nil, nil, fmt.Errorf("no name server known: %w; set resolvers", err)
	}
	for _, s := range c.Servers {
		servers = append(servers, net.JoinHostPort(s, c.Port))
	}
	if len(servers) == 0 {
		return nil, nil, fmt.Errorf("%s names no name server; set resolvers", resolvConf)
	}
	return servers, c.NameList(host), nil
}

// reply is what a name server said about one question.
type reply struct {
	records []wire.RR
	extra   []wire.RR     // what it added unasked: usually the addresses of SRV targets
	ttl     time.Duration // of the records, or of their absence
}

// query asks for one type of record, trying the names of the search list in order. No such
// name is a reply without records.
func (k asker) query(ctx context.Context, host string, typ uint16) (reply, error) {
	servers, names, err := k.servers(host)
	if err != nil {
		return reply{}, err
	}
	var last reply
	for _, name := range names {
		if last, err = k.queryName(ctx, servers, name, typ); err != nil || len(last.records) > 0 {
			return last, err
		}
	}
	return last, nil
}

// queryName asks the servers in order until one answers properly.
func (k asker) queryName(ctx context.Context, servers []string, name string, typ uint16) (reply, error) {
	m := new(wire.Msg).SetQuestion(name, typ)
	m.SetEdns0(udpSize, false)
	var errs []error
	for _, server := range servers {
		m.Id = wire.Id()
		in, err := k.exchange(ctx, m, server)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("name server %s: %w", server, err))
		case in.Rcode == wire.RcodeSuccess || in.Rcode == wire.RcodeNameError:
			return read(in, typ), nil
		default:
			errs = append(errs, fmt.Errorf("name server %s: %s", server, wire.RcodeToString[in.Rcode]))
		}
		if ctx.Err() != nil {
			return reply{}, ctx.Err()
		}
	}
	return reply{}, errors.Join(errs...)
}

func (k asker) exchange(ctx context.Context, m *wire.Msg, server string) (*wire.Msg, error) {
	in, err := k.exchangeOver(ctx, "udp", m, server)
	if err == nil && in.Truncated {
		return k.exchangeOver(ctx, "tcp", m, server)
	}
	return in, err
}

func (k asker) exchangeOver(ctx context.Context, network string, m *wire.Msg, server string) (*wire.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	c := &wire.Client{Net: network, UDPSize: udpSize, Timeout: k.timeout}
	conn, err := c.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// The library looks at the context's deadline only; this makes cancelling prompt too.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	in, _, err := c.ExchangeWithConnContext(ctx, m, conn)
	if err != nil {
		return nil, err
	}
	if len(in.Question) != 1 || !strings.EqualFold(in.Question[0].Name, m.Question[0].Name) || in.Question[0].Qtype != m.Question[0].Qtype {
		return nil, errors.New("it answered another question")
	}
	return in, nil
}

// read takes the wanted records of an answer; links (CNAME) in front of them limit the TTL
// too.
func read(in *wire.Msg, typ uint16) reply {
	out := reply{ttl: maxTTL, extra: in.Extra}
	for _, rr := range in.Answer {
		h := rr.Header()
		if h.Rrtype != typ && h.Rrtype != wire.TypeCNAME {
			continue
		}
		out.ttl = min(out.ttl, seconds(h.Ttl))
		if h.Rrtype == typ {
			out.records = append(out.records, rr)
		}
	}
	if len(out.records) > 0 {
		return out
	}
	out.ttl = min(out.ttl, negativeTTL)
	for _, rr := range in.Ns {
		if soa, ok := rr.(*wire.SOA); ok { // RFC 2308, section 5
			out.ttl = min(out.ttl, seconds(soa.Hdr.Ttl), seconds(soa.Minttl))
		}
	}
	return out
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }

// addresses asks for A and AAAA records at the same time. One of the two is enough.
func (k asker) addresses(ctx context.Context, host, family string) (answer, error) {
	if net.ParseIP(host) != nil {
		return answer{places: []place{{address: host}}, ttl: maxTTL}, nil
	}
	types := map[string][]uint16{"ipv4": {wire.TypeA}, "ipv6": {wire.TypeAAAA}}[family]
	if types == nil {
		types = []uint16{wire.TypeA, wire.TypeAAAA}
	}
	replies, errs := make([]reply, len(types)), make([]error, len(types))
	var wg sync.WaitGroup
	for i, typ := range types {
		wg.Go(func() { replies[i], errs[i] = k.query(ctx, host, typ) })
	}
	wg.Wait()
	out := answer{ttl: maxTTL}
	for i, rep := range replies {
		if errs[i] != nil {
			out.ttl = min(out.ttl, negativeTTL) // half an answer: ask again soon
			continue
		}
		if len(rep.records) > 0 {
			out.ttl = min(out.ttl, rep.ttl)
		}
		for _, rr := range rep.records {
			if ip, _ := addressOf(rr); ip != "" {
				out.places = append(out.places, place{address: ip})
			}
		}
	}
	if len(out.places) > 0 {
		return out.sorted(), nil
	}
	for _, rep := range replies {
		out.ttl = min(out.ttl, rep.ttl)
	}
	return out, errors.Join(errs...)
}

// addressOf gives the IP in an A or AAAA record, and its family; else nothing.
func addressOf(rr wire.RR) (ip, family string) {
	switch rr := rr.(type) {
	case *wire.A:
		if rr.A.To4() != nil {
			return rr.A.String(), "ipv4"
		}
	case *wire.AAAA:
		if len(rr.AAAA) == net.IPv6len {
			return rr.AAAA.String(), "ipv6"
		}
	}
	return "", ""
}

// target is where one SRV record points.
type target struct {
	host, port string
	weight     int
	known      answer // its addresses, if the answer brought them along
}

// maxTargets bounds the questions that one SRV answer can cause.
const maxTargets = 128

// broughtAlong collects the addresses of host among the extra records of an answer.
func broughtAlong(extra []wire.RR, host, family string) answer {
	out := answer{ttl: maxTTL}
	for _, rr := range extra {
		ip, f := addressOf(rr)
		if ip == "" || !strings.EqualFold(rr.Header().Name, host) || (family != "any" && family != f) {
			continue
		}
		out.places = append(out.places, place{address: ip})
		out.ttl = min(out.ttl, seconds(rr.Header().Ttl))
	}
	return out
}

// srv gives the targets of the lowest priority number: RFC 2782 wants the others used only
// when none of these can be reached, which a list without ranks cannot say.
func (k asker) srv(ctx context.Context, host, family string) ([]target, time.Duration, error) {
	rep, err := k.query(ctx, host, wire.TypeSRV)
	if err != nil {
		return nil, 0, err
	}
	var out []target
	best := -1
	for _, rr := range rep.records {
		s, ok := rr.(*wire.SRV)
		if !ok || s.Target == "." || s.Port == 0 {
			continue // "." says: decidedly not offered
		}
		switch p := int(s.Priority); {
		case best < 0 || p < best:
			best, out = p, nil
		case p > best:
			continue
		}
		if len(out) < maxTargets {
			out = append(out, target{strings.TrimSuffix(s.Target, "."), strconv.Itoa(int(s.Port)), int(s.Weight),
				broughtAlong(rep.extra, s.Target, family)})
		}
	}
	return out, rep.ttl, nil
}

// ping asks the first name server that answers anything for the root.
func (k asker) ping(ctx context.Context) error {
	servers, _, err := k.servers(".")
	if err != nil {
		return err
	}
	var errs []error
	for _, server := range servers {
		_, err := k.exchange(ctx, new(wire.Msg).SetQuestion(".", wire.TypeNS), server)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		errs = append(errs, fmt.Errorf("name server %s: %w", server, err))
	}
	return errors.Join(errs...)
}
