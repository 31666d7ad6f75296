package servers

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/untested"
)

// SQLPassword is the password of the first user of the database servers.
const SQLPassword = "s3cret 'p\\w"

// SQL is a database server of a test: a port and a folder that outlive its process, so that it
// can be killed and started again.
type SQL struct {
	Port int
	Cert string // the file of the certificate it shows, signed by itself, for 127.0.0.1 and localhost

	dir   string
	owner *syscall.Credential // nil: this user
	start func() *exec.Cmd
	ready func() error
	proc  *Process
	home  testing.TB // the test it was first started for, whose end is its own
}

// Postgres starts PostgreSQL with user postgres, SQLPassword and TLS. Other settings are
// arguments such as "-c", "max_connections=10".
func Postgres(tb testing.TB, settings ...string) *SQL {
	tb.Helper()
	initdb, err := program("initdb", "/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/16/bin", "/usr/lib/postgresql/15/bin")
	if err != nil {
		untested.Skip(tb, "PostgreSQL: %v", err)
	}
	if initdb, err = filepath.EvalSymlinks(initdb); err != nil { // its sisters are in its own folder
		tb.Fatal(err)
	}
	s := newSQL(tb, "postgres")
	pw := filepath.Join(s.dir, "pw")
	s.write(tb, pw, []byte(SQLPassword))
	data := filepath.Join(s.dir, "data")
	s.run(tb, exec.Command(initdb, "-D", data, "-U", "postgres", "-A", "scram-sha-256", "--pwfile", pw, "-E", "UTF8", "--locale=C", "--no-sync"))
	s.ready = func() error { // it listens before it serves
		return exec.Command(filepath.Join(filepath.Dir(initdb), "pg_isready"), "-q", "-h", "127.0.0.1", "-p", strconv.Itoa(s.Port)).Run()
	}
	s.start = func() *exec.Cmd {
		args := []string{"-D", data, "-p", strconv.Itoa(s.Port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off",
			"-c", "shared_buffers=16MB", "-c", "ssl=on", "-c", "ssl_cert_file=" + s.Cert, "-c", "ssl_key_file=" + filepath.Join(s.dir, "key.pem")}
		return exec.Command(filepath.Join(filepath.Dir(initdb), "postgres"), append(args, settings...)...)
	}
	s.Start(tb)
	return s
}

// newSQL makes the folder, owned by the server's own user when the test runs as root: these
// servers refuse to be root.
func newSQL(tb testing.TB, owner string) *SQL {
	tb.Helper()
	dir, err := os.MkdirTemp("", "mecha-"+owner)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &SQL{Port: Port(tb), dir: dir, Cert: filepath.Join(dir, "cert.pem")}
	s.ready = func() error { return Answers(s.Port) }
	if os.Getuid() == 0 {
		u, err := user.Lookup(owner)
		if err != nil {
			untested.Skip(tb, "user %s: %v", owner, err)
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		s.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			tb.Fatal(err)
		}
	}
	// The certificate is readable by the test too.
	if err := os.Chmod(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	s.certify(tb)
	return s
}

func (s *SQL) write(tb testing.TB, name string, text []byte) {
	tb.Helper()
	if err := os.WriteFile(name, text, 0o600); err != nil {
		tb.Fatal(err)
	}
	if s.owner != nil {
		if err := os.Chown(name, int(s.owner.Uid), int(s.owner.Gid)); err != nil {
			tb.Fatal(err)
		}
	}
}

func (s *SQL) run(tb testing.TB, cmd *exec.Cmd) {
	tb.Helper()
	cmd.SysProcAttr, cmd.Dir = s.attr(), s.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("%s: %v\n%s", cmd.Path, err, out)
	}
}

// attr makes the server's own user run a program.
func (s *SQL) attr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Credential: s.owner} }

// Start starts the server, again after Stop or Kill.
func (s *SQL) Start(tb testing.TB) {
	tb.Helper()
	cmd := s.start()
	cmd.SysProcAttr, cmd.Dir = s.attr(), s.dir
	if s.home == nil {
		s.home = tb
	}
	s.proc = Start(&lasting{TB: tb, keep: s.home.Cleanup}, cmd, s.ready)
	s.home.Cleanup(s.Kill)
}

// Stop asks the server to end and waits until it has, at most for a minute. It asks again and again:
// Mosquitto forgets a request that comes too early.
func (s *SQL) Stop(tb testing.TB) {
	tb.Helper()
	again := time.NewTicker(2 * time.Second)
	defer again.Stop()
	for end := time.Now().Add(time.Minute); ; {
		_ = syscall.Kill(s.proc.cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-s.proc.done:
			s.Kill() // helpers that are left
			return
		case <-again.C:
		}
		if time.Now().After(end) {
			s.Kill()
			tb.Fatalf("%s does not stop:\n%s", s.proc.cmd.Path, s.proc.out.String())
		}
	}
}

// Kill ends the server and its helpers at once.
func (s *SQL) Kill() {
	helpers := s.helpers()
	s.proc.Kill()
	for _, pid := range helpers {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, pid := range helpers { // their memory must be free before the next start
		for range 500 {
			if !lives(pid) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// Freeze stops the server and its helpers from doing anything; Thaw lets them go on.
func (s *SQL) Freeze() {
	s.proc.Freeze()
	for _, pid := range s.helpers() {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
}

// Thaw lets a frozen server go on.
func (s *SQL) Thaw() {
	for _, pid := range s.helpers() {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	s.proc.Thaw()
}

// lives tells whether a process holds anything: one that ended and that nobody has asked after
// does not.
func lives(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	state := strings.TrimSpace(string(text)[strings.LastIndexByte(string(text), ')')+1:])
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

// helpers are the processes the server started. PostgreSQL's leave its process group.
func (s *SQL) helpers() []int {
	var out []int
	names, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(text)[strings.LastIndexByte(string(text), ')')+1:])
		if len(fields) > 1 && fields[1] == strconv.Itoa(s.proc.cmd.Process.Pid) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			out = append(out, pid)
		}
	}
	return out
}

// certify makes a certificate that is its own authority.
func (s *SQL) certify(tb testing.TB) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	s.write(tb, s.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	s.write(tb, filepath.Join(s.dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}

// Relay passes connections on to a port of loopback until Cut breaks them all.
type Relay struct {
	Port int
	cut  chan chan struct{}
}

// NewRelay listens on a free port.
func NewRelay(tb testing.TB, to int) *Relay {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	r := &Relay{Port: l.Addr().(*net.TCPAddr).Port, cut: make(chan chan struct{})}
	conns := make(chan net.Conn)
	done := make(chan struct{})
	go func() {
		defer close(conns)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
		}
	}()
	go func() {
		defer close(done)
		var open []net.Conn
		drop := func() {
			for _, c := range open {
				_ = c.Close()
			}
			open = nil
		}
		defer drop()
		for {
			select {
			case c, ok := <-conns:
				if !ok {
					return
				}
				if there, err := dial(to); err == nil {
					open = append(open, c, there)
					go pump(c, there)
					go pump(there, c)
				} else {
					_ = c.Close()
				}
			case answer := <-r.cut:
				drop()
				close(answer)
			}
		}
	}()
	tb.Cleanup(func() { _ = l.Close(); <-done })
	return r
}

// Cut breaks every connection there is. New ones are taken.
func (r *Relay) Cut() {
	answer := make(chan struct{})
	r.cut <- answer
	<-answer
}

func dial(port int) (net.Conn, error) {
	var d net.Dialer
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
}

func pump(from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_, _ = from.Close(), to.Close()
}
