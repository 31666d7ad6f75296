package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/mecha-project/mecha/runtime/telemetry"
)

// defaultListenFor is how long ports in use are tried again, all together: a predecessor may still
// be closing them.
const defaultListenFor = 10 * time.Second

// listen binds every port the sidecar answers on.
func (h *Sidecar) listen(ctx context.Context) (l Listeners, err error) {
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	patience := h.o.ListenFor
	if patience <= 0 {
		patience = defaultListenFor
	}
	until := time.Now().Add(patience)
	if l.GRPC, err = h.apiListeners(ctx, "gRPC", "dapr.runtime.grpc.api", "grpc", h.s.GRPCPort, until); err != nil {
		return l, err
	}
	if l.HTTP, err = h.apiListeners(ctx, "HTTP", "dapr.runtime.http", "http", h.s.HTTPPort, until); err != nil {
		return l, err
	}
	if h.s.PublicPort > 0 {
		if l.Public, err = h.retryListen(ctx, "tcp", join(h.s.PublicHost(), h.s.PublicPort), until); err != nil {
			return l, fmt.Errorf("failed to start public HTTP server: %w", err)
		}
	}
	if l.Peer, err = h.s.ListenPeer(); err != nil {
		return l, fmt.Errorf("failed to start internal gRPC server: %w", err)
	}
	if !h.s.PeerIsLocal() {
		h.log.Warn("the peer port is open beyond this host and carries calls in clear text, until certificates are set up", "address", l.Peer.Addr().String())
	}
	return l, nil
}

// apiListeners binds one API on its addresses, or on its Unix socket.
func (h *Sidecar) apiListeners(ctx context.Context, api, scope, short string, port int, until time.Time) ([]net.Listener, error) {
	log := telemetry.Scope(h.log, scope)
	if h.s.UnixDomainSocket != "" {
		path := filepath.Join(h.s.UnixDomainSocket, "dapr-"+h.s.AppID+"-"+short+".socket")
		removeStale(path)
		l, err := h.retryListen(ctx, "unix", path, until)
		if err != nil {
			return nil, fmt.Errorf("failed to start API %s server: %w", api, err)
		}
		log.Info(api + " server listening on UNIX socket: " + path)
		return []net.Listener{l}, nil
	}
	var out []net.Listener
	var last error
	for _, host := range h.s.APIHosts() {
		at := port
		if at == 0 && len(out) > 0 { // the same free port on every address
			at = out[0].Addr().(*net.TCPAddr).Port
		}
		l, err := h.retryListen(ctx, "tcp", join(host, at), until)
		if err != nil {
			log.Error(fmt.Sprintf("Failed to listen for %s server on TCP address %s with error: %v", api, join(host, at), err))
			last = err
			continue
		}
		log.Info(api + " server listening on TCP address: " + l.Addr().String())
		out = append(out, l)
	}
	if last != nil {
		for _, l := range out {
			l.Close()
		}
		err := fmt.Errorf("failed to start API %s server: could not listen on any endpoint: %w", api, last)
		if inUse(last) {
			err = fmt.Errorf("%w; stop the process that has the port, or choose another with --dapr-%s-port", err, short)
		}
		return nil, err
	}
	return out, nil
}

// removeStale removes a socket file that nobody answers on.
func removeStale(path string) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return
	}
	os.Remove(path)
}

func join(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// retryListen tries until the port is free or the time is over, and once at least. What is not a
// port in use will not get better.
func (h *Sidecar) retryListen(ctx context.Context, network, addr string, until time.Time) (net.Listener, error) {
	var cfg net.ListenConfig
	for told := false; ; told = true {
		l, err := cfg.Listen(ctx, network, addr)
		if err == nil || !inUse(err) || time.Now().After(until) || ctx.Err() != nil {
			return l, err
		}
		if !told {
			h.log.Warn(fmt.Sprintf("%s is in use; waiting up to %s for it to become free", addr, time.Until(until).Round(time.Second)))
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// inUse recognises an address in use; 10048 is how Windows says it.
func inUse(err error) bool {
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.Errno(10048))
}

func (l *Listeners) close() {
	for _, x := range append(append([]net.Listener{l.Public, l.Peer}, l.HTTP...), l.GRPC...) {
		if x != nil {
			x.Close()
		}
	}
}
