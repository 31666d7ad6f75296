package settings

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
)

// Default ports for other sidecars start here, clear of well-known services.
const (
	peerPortBase  = 47300
	peerPortRange = 1000
	peerPortTries = 64
)

// defaultPeerPort is a port that stays the same for one app started in one place by one
// user on one host, and is likely to differ from everybody else's.
func defaultPeerPort(appID string) int {
	cwd, _ := os.Getwd() // unknown parts only make the port less particular
	host, _ := os.Hostname()
	uid := strconv.Itoa(os.Getuid())
	if u, err := user.Current(); uid == "-1" && err == nil {
		uid = u.Uid // Windows has no numbers
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(strings.Join([]string{appID, cwd, uid, host}, "\x00"))) // a hash never fails
	return peerPortBase + int(h.Sum32()%peerPortRange)
}

// APIHosts are the addresses the API listens on: those asked for, else 127.0.0.1 and, where
// the system has it, ::1.
func (s *Settings) APIHosts() []string {
	if len(s.ListenAddresses) == 0 {
		hosts := []string{"127.0.0.1"}
		if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
			_ = l.Close()
			hosts = append(hosts, "::1")
		}
		return hosts
	}
	hosts := make([]string, len(s.ListenAddresses))
	for i, a := range s.ListenAddresses {
		hosts[i] = bareHost(a)
	}
	return hosts
}

// bareHost takes the brackets off an IPv6 address.
func bareHost(a string) string {
	if strings.HasPrefix(a, "[") && strings.HasSuffix(a, "]") {
		return a[1 : len(a)-1]
	}
	return a
}

// PeerHost is the address the port for other sidecars listens on.
func (s *Settings) PeerHost() string { return hostOr(s.PeerListenAddress) }

// PublicHost is the address the public port listens on.
func (s *Settings) PublicHost() string { return hostOr(s.PublicListenAddress) }

func hostOr(address string) string {
	if address == "" {
		return "127.0.0.1"
	}
	return bareHost(address)
}

// PeerIsLocal tells whether only this host can reach the port for other sidecars.
func (s *Settings) PeerIsLocal() bool {
	ip := net.ParseIP(s.PeerHost())
	return s.PeerHost() == "localhost" || (ip != nil && ip.IsLoopback())
}

// ListenPeer opens the port for other sidecars. A port that was asked for is the only one
// tried; the default one gives way to the next free ones, then to any. The caller announces
// the port it got.
func (s *Settings) ListenPeer() (net.Listener, error) {
	host, tries := s.PeerHost(), 1
	if !s.PeerPortGiven {
		tries = peerPortTries
	}
	var last error
	for i := range tries {
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(s.PeerPort+i)))
		if err == nil {
			return l, nil
		}
		last = err
		if !portTaken(err) {
			break
		}
	}
	if !s.PeerPortGiven && portTaken(last) {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err == nil {
			return l, nil
		}
		last = err
	}
	return nil, fmt.Errorf("failed to listen for other sidecars on %s: %w; is another sidecar using --dapr-internal-grpc-port %d?", host, last, s.PeerPort)
}

// portTaken recognises a port in use; 10048 is how Windows says it.
func portTaken(err error) bool {
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.Errno(10048))
}

// HostAddress is the address other hosts reach this one at: DAPR_HOST_IP, else the first
// address of this host that is not loopback, IPv4 before IPv6; 127.0.0.1 when there is none.
func (s *Settings) HostAddress() string {
	if s.HostIP != "" {
		return s.HostIP
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "127.0.0.1"
	}
	v6 := ""
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || !n.IP.IsGlobalUnicast() {
			continue
		}
		if v4 := n.IP.To4(); v4 != nil {
			return v4.String()
		}
		if v6 == "" {
			v6 = n.IP.String()
		}
	}
	if v6 != "" {
		return v6
	}
	return "127.0.0.1"
}

// ProcessEnv is what the sidecar sets in its own environment for components to read, given
// the peer port it really listens on.
func (s *Settings) ProcessEnv(peerPort int) map[string]string {
	return map[string]string{
		"APP_ID": s.AppID, "APP_PORT": strconv.Itoa(s.AppPort), "HOST_ADDRESS": s.HostAddress(),
		"DAPR_PORT": strconv.Itoa(peerPort), "DAPR_HTTP_PORT": strconv.Itoa(s.HTTPPort), "DAPR_GRPC_PORT": strconv.Itoa(s.GRPCPort),
		"DAPR_METRICS_PORT": strconv.Itoa(s.MetricsPort), "DAPR_PROFILE_PORT": strconv.Itoa(s.ProfilePort),
	}
}
