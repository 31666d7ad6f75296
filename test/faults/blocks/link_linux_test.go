package blocks

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/servers"
	"github.com/mecha-project/mecha/test/untested"
)

// farRedis runs a server in a network of its own.
func farRedis(t *testing.T, n *harness.Network, dir string) *servers.Process {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		untested.Skip(t, "a network cut before Redis: %v (Debian: redis-server)", err)
	}
	return servers.Start(t, exec.Command("ip", "netns", "exec", n.Name, path, "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no",
		"--dir", dir, "--save", "", "--appendonly", "yes", "--appendfsync", "always"), func() error { return tell(n, "PING") })
}

// tell gives the server an order from its own host.
func tell(n *harness.Network, words ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := n.Dial(ctx, "tcp", "127.0.0.1:6379")
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintf(c, "%s\r\n", strings.Join(words, " ")); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "+") {
		err = fmt.Errorf("%v: %q", words, line)
	}
	return err
}

// The network to Redis is cut, without a word to either side. While it is, Redis starts again,
// so that the sidecar's connections exist on its side only and nobody will ever tell it.
func TestHalfOpenConnection(t *testing.T) {
	t.Parallel()
	// The server is to end with the thread that started it, and those that were in another
	// network end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	near, far := harness.TwoNetworks(t)
	// A connection the dead server leaves is given up by its system while the link is cut, and
	// not closed properly later.
	if out, err := exec.Command("ip", "netns", "exec", far.Name, "sysctl", "-qw", "net.ipv4.tcp_orphan_retries=1").CombinedOutput(); err != nil {
		t.Logf("connections may be closed by the other side after the cut: %v %s", err, out)
	}
	dir := t.TempDir()
	srv := farRedis(t, far, dir)
	set := func(key, value string) {
		t.Helper()
		if err := tell(far, "SET", key, value); err != nil {
			t.Fatal(err)
		}
	}
	set("fixed", "10")
	set("moving", "0")
	addr := net.JoinHostPort(far.IP, "6379")
	side := harness.NewMesh(t).Start(harness.Options{AppID: "shop", Launch: near.Launch, Dial: near.Dial, Files: map[string]string{
		"memory.yaml": component("memory", "state.in-memory"), "state.yaml": component("redis-state", "state.redis", "redisHost", addr),
		"configuration.yaml": component("redis-configuration", "configuration.redis", "redisHost", addr)}})
	sub := subscribe(t, side, "redis-configuration", "moving")
	set("moving", "1")
	sub.hears(t, "1", again)

	a, other := newAPI(t, side), newAPI(t, side)
	state, config := stateTrial("state.redis", "redis-state"), configTrial("configuration.redis", "redis-configuration")
	loads := []*load{
		begin(t, state.name, 3, func(ctx context.Context, _ int, n int64) error { return state.call(ctx, a, n) }),
		begin(t, config.name, 3, func(ctx context.Context, _ int, n int64) error { return config.call(ctx, a, n) }),
	}
	neighbour := begin(t, "state.in-memory beside it", 2, func(ctx context.Context, who int, n int64) error {
		return save(ctx, other, "memory", fmt.Sprint("k", who), value(n))
	})
	for _, l := range loads {
		l.works(again)
	}
	cut := time.Now()
	far.SetLink(t, false)
	t.Cleanup(func() { srv.Kill() })
	srv.Kill()
	time.Sleep(3 * time.Second)
	srv = farRedis(t, far, dir)
	set("moving", "2")
	mended := time.Now()
	far.SetLink(t, true)
	// What changed meanwhile is found, and then what changes next is told.
	for _, l := range loads {
		l.works(again)
		l.end()
	}
	missed := sub.hears(t, "2", time.Minute)
	set("moving", "3")
	next := sub.hears(t, "3", 30*time.Second)
	for _, l := range loads {
		if failedIn(l, cut, mended) == 0 {
			t.Errorf("%s: no call failed during the cut: the test did not test", l.name)
		}
	}
	if f := neighbour.judge(); f.failed > 0 {
		t.Errorf("%s: %d of %d calls failed", neighbour.name, f.failed, f.calls)
	}
	for i, l := range loads {
		f := l.judge()
		[]trial{state, config}[i].audit(t, a, l.acked)
		report("%s, network cut for %v and Redis started anew behind it: %d calls, %d failed, slowest %v (deadline %v), %d acknowledged and there",
			l.name, ms(mended.Sub(cut)), f.calls, f.failed, ms(f.slowest), deadline, len(l.acked))
	}
	report("configuration.redis, the same: a change made meanwhile is told %v after the cut, the next one %v after it was made", ms(missed), ms(next))
}
