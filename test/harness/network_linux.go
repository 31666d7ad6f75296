package harness

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mecha-project/mecha/test/untested"
)

// Network is a network namespace: a host of its own as far as the network goes.
type Network struct {
	Name string
	IP   string // its address on the link to the other one
	dev  string
}

var networks atomic.Int32

// TwoNetworks makes two namespaces joined by a link, until the test ends. It needs root
// (see untested.Skip).
func TwoNetworks(tb testing.TB) (a, b *Network) {
	tb.Helper()
	if os.Getuid() != 0 {
		untested.Skip(tb, "a network between two hosts: namespaces need root")
	}
	id := fmt.Sprintf("m%d-%d", os.Getpid(), networks.Add(1)) // at most 15 bytes with the letter
	add := func(letter, ip string) *Network {
		n := &Network{Name: id + letter, IP: ip, dev: id + letter}
		runIP(tb, "netns", "add", n.Name)
		tb.Cleanup(func() { _ = exec.Command("ip", "netns", "del", n.Name).Run() }) // takes its end of the link along
		runIP(tb, "-n", n.Name, "link", "set", "lo", "up")
		return n
	}
	a, b = add("a", "10.77.0.1"), add("b", "10.77.0.2")
	runIP(tb, "link", "add", a.dev, "netns", a.Name, "type", "veth", "peer", "name", b.dev, "netns", b.Name)
	for _, n := range []*Network{a, b} {
		runIP(tb, "-n", n.Name, "addr", "add", n.IP+"/24", "dev", n.dev)
		runIP(tb, "-n", n.Name, "link", "set", n.dev, "up", "multicast", "on")
		runIP(tb, "-n", n.Name, "route", "add", "224.0.0.0/4", "dev", n.dev)
	}
	return a, b
}

func runIP(tb testing.TB, args ...string) {
	tb.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		tb.Fatalf("ip %s: %v %s", strings.Join(args, " "), err, out)
	}
}

// SetLink cuts the link at this network's end, or mends it.
func (n *Network) SetLink(tb testing.TB, up bool) {
	tb.Helper()
	state := "down"
	if up {
		state = "up"
	}
	runIP(tb, "-n", n.Name, "link", "set", n.dev, state)
}

// do runs f on a thread inside the namespace.
func (n *Network) do(f func() error) error {
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := os.Open("/run/netns/" + n.Name)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err == nil {
			err = f()
		}
		errs <- err
	}()
	return <-errs
}

// Launch starts a process inside.
func (n *Network) Launch(cmd *exec.Cmd) error { return n.do(cmd.Start) }

// Dial connects from inside to a numeric address.
func (n *Network) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = n.do(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Listen listens inside.
func (n *Network) Listen(addr string) (l net.Listener, err error) {
	err = n.do(func() error {
		l, err = net.Listen("tcp", addr)
		return err
	})
	return l, err
}
