package launch

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
)

// port is one of an app's sidecar ports, with the word for it in messages.
type port struct {
	name string
	at   *int
}

// ports are the ports a sidecar listens on.
func (a *App) ports() []port {
	ps := []port{
		{"HTTP port", &a.HTTPPort}, {"gRPC port", &a.GRPCPort},
		{"internal gRPC port", &a.InternalPort}, {"metrics port", &a.MetricsPort},
	}
	if a.EnableProfiling {
		ps = append(ps, port{"profile port", &a.ProfilePort})
	}
	return ps
}

// Free ports are taken from below the range out of which systems give numbers to outgoing
// connections and to listeners on port 0: such a number, once released for the sidecar, was
// seen in the hands of a stranger before the sidecar had bound it. Every process begins at
// another place, so that runs started at the same time do not meet either.
const (
	firstPort    = 10000
	lastPort     = 32767
	portsPerProc = 16
)

// reservation holds free ports open until the sidecar that will use them starts, so that
// nobody else is given the same number meanwhile. Between release and the sidecar's own
// bind a stranger can still take one; a sidecar retries a busy port for some seconds and
// then says so, and starting again chooses other numbers.
type reservation struct {
	next int // where to look for a free port

	mu   sync.Mutex // guards held: every app's sidecar starts in its own time
	held map[*App][]net.Listener
}

// reservePorts chooses a free port wherever an app left one open. All numbers of a run differ
// from one another. Two apps that ask for the same number are an error.
func reservePorts(apps []*App) (*reservation, error) {
	taken := map[int]string{}
	for _, a := range apps {
		if a.AppPort > 0 {
			taken[a.AppPort] = fmt.Sprintf("the app port of app %q", a.ID)
		}
	}
	for _, a := range apps {
		for _, p := range a.ports() {
			if *p.at <= 0 {
				continue
			}
			who := fmt.Sprintf("the %s of app %q", p.name, a.ID)
			if other, ok := taken[*p.at]; ok {
				return nil, fmt.Errorf("port %d is asked for twice: as %s and as %s; give one of them another number", *p.at, other, who)
			}
			taken[*p.at] = who
		}
	}
	r := &reservation{
		next: firstPort + os.Getpid()*portsPerProc%(lastPort-firstPort+1),
		held: map[*App][]net.Listener{},
	}
	for _, a := range apps {
		for _, p := range a.ports() {
			if *p.at > 0 {
				continue
			}
			n, err := r.draw(a, taken)
			if err != nil {
				r.releaseAll()
				return nil, fmt.Errorf("choose a free %s for app %q: %w", p.name, a.ID, err)
			}
			*p.at = n
			taken[n] = a.ID
		}
	}
	return r, nil
}

// draw finds a number that is free and that nobody asked for.
func (r *reservation) draw(a *App, taken map[int]string) (int, error) {
	var last error
	for range lastPort - firstPort + 1 {
		n := r.next
		if r.next++; r.next > lastPort {
			r.next = firstPort
		}
		if _, clash := taken[n]; clash {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(n)))
		if err != nil {
			last = err
			continue
		}
		r.held[a] = append(r.held[a], l)
		return n, nil
	}
	return 0, last
}

// release frees the ports of one app for its sidecar.
func (r *reservation) release(a *App) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.held[a] {
		l.Close()
	}
	delete(r.held, a)
}

func (r *reservation) releaseAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ls := range r.held {
		for _, l := range ls {
			l.Close()
		}
	}
	clear(r.held)
}
