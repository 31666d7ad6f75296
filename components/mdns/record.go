package mdns

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	wire "github.com/miekg/dns"

	"github.com/mecha-project/mecha/components/block"
)

// The layout of an announcement. "A" is 16 hex digits of a hash of namespace and app id, "I"
// 32 of a hash of the instance id; both, since names in DNS are short and case-blind.
//
//	_mecha._tcp.local.            PTR  I._mecha._tcp.local.      every instance of Mecha
//	A._sub._mecha._tcp.local.     PTR  I._mecha._tcp.local.      the instances of one app
//	I._mecha._tcp.local.          SRV  0 0 <port> I.local.       or the announced host name
//	I._mecha._tcp.local.          TXT  v=1 app=… ns=… id=… p=<protocol> w=<weight> l0=… l1=…
//	I.local.                      A or AAAA                      when an IP is announced
//
// The strings l0, l1, … joined are the labels as a JSON object. A reader needs all records
// in one packet, which is how they are sent.
const (
	serviceType = "_mecha._tcp.local."
	version     = "1"
	flush       = 1 << 15 // the top bit of the class: replaces what was known (RFC 6762, 10.2)
)

// maxPacket keeps an announcement inside one Ethernet frame.
const maxPacket = 1400

func hash(text string, digits int) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])[:digits]
}

// appService is the name to ask for an app's instances.
func appService(n block.Name) string {
	return hash(n.Namespace+"\x00"+n.App, 16) + "._sub." + serviceType
}

func instanceLabel(id string) string { return hash(id, 32) }

// query is a question for pointers.
func query(name string) *wire.Msg {
	return &wire.Msg{Question: []wire.Question{{Name: name, Qtype: wire.TypePTR, Qclass: wire.ClassINET}}}
}

// asked tells whether one of the questions concerns an instance.
func asked(questions []wire.Question, in block.Instance) bool {
	label := instanceLabel(in.ID)
	for _, q := range questions {
		switch strings.ToLower(q.Name) {
		case serviceType, appService(in.Name()), label + "." + serviceType, label + ".local.":
			return true
		}
	}
	return false
}

// announcement is the message for an instance. own replaces a wildcard host; without one
// there is no message. A ttl of zero is the goodbye.
func announcement(in block.Instance, own func() net.IP, ttl time.Duration) *wire.Msg {
	host, portText, _ := net.SplitHostPort(in.Address)
	portNumber, _ := strconv.ParseUint(portText, 10, 16)
	seconds := uint32((ttl + time.Second - 1) / time.Second)
	header := func(name string, typ, class uint16) wire.RR_Header {
		return wire.RR_Header{Name: name, Rrtype: typ, Class: class, Ttl: seconds}
	}
	label := instanceLabel(in.ID)
	service, target := label+"."+serviceType, label+".local."
	ip := net.ParseIP(host)
	if ip != nil && ip.IsUnspecified() {
		if ip = own(); ip == nil {
			return nil
		}
	}
	var extra []wire.RR
	switch {
	case ip == nil:
		target = wire.Fqdn(host)
	case ip.To4() != nil:
		extra = append(extra, &wire.A{Hdr: header(target, wire.TypeA, wire.ClassINET|flush), A: ip.To4()})
	default:
		extra = append(extra, &wire.AAAA{Hdr: header(target, wire.TypeAAAA, wire.ClassINET|flush), AAAA: ip})
	}
	extra = append(extra,
		&wire.SRV{Hdr: header(service, wire.TypeSRV, wire.ClassINET|flush), Port: uint16(portNumber), Target: target},
		&wire.TXT{Hdr: header(service, wire.TypeTXT, wire.ClassINET|flush), Txt: escapeAll(texts(in))})
	return &wire.Msg{
		MsgHdr:   wire.MsgHdr{Response: true, Authoritative: true},
		Compress: true,
		Answer: []wire.RR{
			&wire.PTR{Hdr: header(serviceType, wire.TypePTR, wire.ClassINET), Ptr: service},
			&wire.PTR{Hdr: header(appService(in.Name()), wire.TypePTR, wire.ClassINET), Ptr: service},
		},
		Extra: extra,
	}
}

// texts are the strings of the TXT record, at most 255 bytes each.
func texts(in block.Instance) []string {
	out := []string{"v=" + version, "app=" + in.App, "ns=" + in.Namespace, "id=" + in.ID,
		"p=" + in.Protocol, "w=" + strconv.Itoa(in.Weight)}
	if len(in.Labels) == 0 {
		return out
	}
	labels, _ := json.Marshal(in.Labels) // a map of strings cannot fail
	for n := 0; len(labels) > 0; n++ {
		size := min(len(labels), 240)
		out = append(out, "l"+strconv.Itoa(n)+"="+string(labels[:size]))
		labels = labels[size:]
	}
	return out
}

// fits says why an instance cannot be announced.
func fits(in block.Instance) error {
	host, _, _ := net.SplitHostPort(in.Address)
	if _, ok := wire.IsDomainName(host); net.ParseIP(host) == nil && (!ok || strings.ContainsAny(host, `\%`)) {
		return fmt.Errorf("address %q: its host is neither an IP nor a host name", in.Address)
	}
	data, err := announcement(in, func() net.IP { return net.IPv6loopback }, time.Minute).Pack()
	if err != nil {
		return fmt.Errorf("instance cannot be announced: %w", err)
	}
	if len(data) > maxPacket {
		return fmt.Errorf("instance takes %d bytes, at most %d fit one packet; shorten its labels or names", len(data), maxPacket)
	}
	return nil
}

// found is one instance in a message, and how long it is to be believed. Zero is the
// goodbye.
type found struct {
	block.Instance
	ttl time.Duration
}

// parse takes the complete, valid instances out of a message. The rest is other people's.
func parse(m *wire.Msg) []found {
	services, ips := map[string]*wire.SRV{}, map[string]net.IP{}
	var infos []*wire.TXT
	for _, section := range [][]wire.RR{m.Answer, m.Extra} {
		for _, rr := range section {
			name := strings.ToLower(rr.Header().Name)
			switch rr := rr.(type) {
			case *wire.SRV:
				services[name] = rr
			case *wire.TXT:
				infos = append(infos, rr)
			case *wire.A:
				ips[name] = rr.A
			case *wire.AAAA:
				ips[name] = rr.AAAA
			}
		}
	}
	var out []found
	for _, info := range infos {
		name := strings.ToLower(info.Hdr.Name)
		srv := services[name]
		if srv == nil || !strings.HasSuffix(name, "."+serviceType) {
			continue
		}
		in, err := readTexts(info.Txt)
		if err != nil || name != instanceLabel(in.ID)+"."+serviceType {
			continue
		}
		host := strings.TrimSuffix(srv.Target, ".")
		if ip := ips[strings.ToLower(srv.Target)]; ip != nil {
			host = ip.String()
		} else if strings.EqualFold(host, instanceLabel(in.ID)+".local") {
			continue // its address should be in the packet and is not
		}
		in.Address = net.JoinHostPort(host, strconv.Itoa(int(srv.Port)))
		if in.Validate() != nil {
			continue
		}
		out = append(out, found{in, time.Duration(min(info.Hdr.Ttl, srv.Hdr.Ttl)) * time.Second})
	}
	return out
}

func readTexts(list []string) (block.Instance, error) {
	var in block.Instance
	var v, labels string
	for _, text := range list {
		key, value, _ := strings.Cut(unescape(text), "=")
		switch {
		case key == "v":
			v = value
		case key == "app":
			in.App = value
		case key == "ns":
			in.Namespace = value
		case key == "id":
			in.ID = value
		case key == "p":
			in.Protocol = value
		case key == "w":
			n, err := strconv.Atoi(value)
			if err != nil {
				return in, err
			}
			in.Weight = n
		case strings.HasPrefix(key, "l"):
			labels += value
		}
	}
	if v != version {
		return in, errors.New("another version of the layout")
	}
	if labels == "" {
		return in, nil
	}
	return in, json.Unmarshal([]byte(labels), &in.Labels)
}

// The DNS library keeps TXT strings as zone files write them: backslash and quote escaped,
// other bytes as three decimal digits.

func escapeAll(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = strings.ReplaceAll(s, `\`, `\\`)
	}
	return out
}

func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 >= len(s) {
			out = append(out, s[i])
			continue
		}
		if i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 10, 8); err == nil {
				out = append(out, byte(n))
				i += 3
				continue
			}
		}
		i++
		out = append(out, s[i])
	}
	return string(out)
}
