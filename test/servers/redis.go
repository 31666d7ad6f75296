package servers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/untested"
)

// Redis is a Redis server that a test started.
type Redis struct {
	*Process
	Port int
	Addr string // host:port
	dir  string
	args []string
}

// StartRedis runs redis-server with the options given, as on its command line. Everything written
// is synced to its file before it is acknowledged, so that a killed server loses nothing.
func StartRedis(tb testing.TB, args ...string) *Redis {
	tb.Helper()
	r := &Redis{Port: Port(tb), dir: tb.TempDir(), args: args}
	r.Addr = fmt.Sprintf("127.0.0.1:%d", r.Port)
	r.Restart(tb)
	return r
}

// Restart runs the server again, on the same port and with the same data, after Kill.
func (r *Redis) Restart(tb testing.TB) {
	tb.Helper()
	args := append([]string{"--port", strconv.Itoa(r.Port), "--bind", "127.0.0.1", "--dir", r.dir, "--save", "",
		"--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0"}, r.args...)
	r.Process = Start(tb, exec.Command(redisServer(tb), args...), func() error { return r.answers() })
}

// answers tells whether the server serves. One that loads its data says so instead, and one that
// wants a password is up.
func (r *Redis) answers() error {
	if strings.Contains(strings.Join(r.args, " "), "--tls-port "+strconv.Itoa(r.Port)) {
		return Answers(r.Port)
	}
	answer, err := RedisCommand(r.Port, "PING")
	if err == nil || strings.HasPrefix(err.Error(), "NOAUTH") {
		return nil
	}
	return fmt.Errorf("answer %q: %w", answer, err)
}

func redisServer(tb testing.TB) string {
	tb.Helper()
	path, err := program("redis-server", "/usr/local/bin", "/usr/sbin")
	if err != nil {
		untested.Skip(tb, "Redis: %v (Debian: redis-server)", err)
	}
	return path
}

// StartSentinel runs a sentinel that watches the master at a port under the name "mymaster", and
// declares it dead after half a second.
func StartSentinel(tb testing.TB, master int, more ...string) *Redis {
	tb.Helper()
	r := &Redis{Port: Port(tb), dir: tb.TempDir()}
	r.Addr = fmt.Sprintf("127.0.0.1:%d", r.Port)
	lines := append([]string{fmt.Sprintf("port %d", r.Port), "bind 127.0.0.1", "dir " + r.dir,
		fmt.Sprintf("sentinel monitor mymaster 127.0.0.1 %d 1", master),
		"sentinel down-after-milliseconds mymaster 500", "sentinel failover-timeout mymaster 3000"}, more...)
	file := filepath.Join(r.dir, "sentinel.conf")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	r.Process = Start(tb, exec.Command(redisServer(tb), file, "--sentinel"), func() error { return r.answers() })
	return r
}

// StartRedisCluster runs a cluster of three masters, each with a third of the 16384 slots.
func StartRedisCluster(tb testing.TB) []*Redis {
	tb.Helper()
	nodes := make([]*Redis, 3)
	for i := range nodes {
		nodes[i] = StartRedis(tb, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000",
			"--cluster-port", strconv.Itoa(Port(tb)), "--cluster-require-full-coverage", "no")
	}
	for i, n := range nodes {
		must(tb, n.Port, "CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(16384*i/3), strconv.Itoa(16384*(i+1)/3-1))
		must(tb, n.Port, "CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
	}
	bus := func(n *Redis) string { return n.args[len(n.args)-3] }
	for _, n := range nodes[1:] {
		must(tb, nodes[0].Port, "CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(n.Port), bus(n))
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if settled(nodes) {
			return nodes
		}
		if time.Now().After(end) {
			tb.Fatal("the Redis cluster does not come together")
		}
	}
}

func settled(nodes []*Redis) bool {
	for _, n := range nodes {
		info, err := RedisCommand(n.Port, "CLUSTER", "INFO")
		slots, err2 := RedisCommand(n.Port, "CLUSTER", "NODES")
		if err != nil || err2 != nil || !strings.Contains(info, "cluster_state:ok") ||
			!strings.Contains(info, "cluster_slots_ok:16384") || strings.Count(slots, "connected ") < len(nodes) {
			return false
		}
	}
	return true
}

func must(tb testing.TB, port int, args ...string) {
	tb.Helper()
	if _, err := RedisCommand(port, args...); err != nil {
		tb.Fatalf("%v: %v", args, err)
	}
}

// RedisCommand sends one command to a server on loopback and returns its answer if that is one
// text, a number or a status. Errors of the server are errors.
func RedisCommand(port int, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := c.Write([]byte(b.String())); err != nil {
		return "", err
	}
	return readReply(bufio.NewReader(c))
}

func readReply(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimRight(line, "\r\n")
	switch {
	case strings.HasPrefix(line, "-"):
		return "", errors.New(line[1:])
	case strings.HasPrefix(line, "$-1"), strings.HasPrefix(line, "*"):
		return "", nil
	case strings.HasPrefix(line, "$"):
		n, err := strconv.Atoi(line[1:])
		if err != nil {
			return "", err
		}
		body := make([]byte, n)
		for got := 0; got < n; {
			m, err := r.Read(body[got:])
			if err != nil {
				return "", err
			}
			got += m
		}
		return string(body), nil
	}
	return line[1:], nil
}
