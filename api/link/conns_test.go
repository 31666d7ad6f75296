package link_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"
)

// selfSigned makes one certificate for all tests.
var selfSigned = sync.OnceValues(func() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"peer"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
})

// tlsPair is two ends of TLS over TCP, with a certificate made for this run.
func tlsPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	cert, err := selfSigned()
	if err != nil {
		t.Fatal(err)
	}
	a, b := tcpPair(t)
	return tls.Client(a, &tls.Config{InsecureSkipVerify: true}), tls.Server(b, &tls.Config{Certificates: []tls.Certificate{cert}})
}

// delayed passes reads on a while after their bytes came in: a path with a round trip and
// unlimited bandwidth.
type delayed struct {
	net.Conn
	arrived chan parcel
	rest    []byte
	err     error
	pump    sync.WaitGroup
	closed  chan struct{}
	once    sync.Once
}

type parcel struct {
	at  time.Time
	p   []byte
	err error
}

func newDelayed(conn net.Conn, delay time.Duration) *delayed {
	d := &delayed{Conn: conn, arrived: make(chan parcel, 1<<14), closed: make(chan struct{})}
	d.pump.Go(func() {
		defer close(d.arrived)
		for {
			p := make([]byte, 32<<10)
			n, err := io.ReadAtLeast(conn, p, 1)
			select {
			case d.arrived <- parcel{time.Now().Add(delay), p[:n], err}:
			case <-d.closed:
				return
			}
			if err != nil {
				return
			}
		}
	})
	return d
}

func (d *delayed) Read(p []byte) (int, error) {
	if len(d.rest) == 0 && d.err == nil {
		next, ok := <-d.arrived
		if !ok {
			return 0, net.ErrClosed
		}
		time.Sleep(time.Until(next.at))
		d.rest, d.err = next.p, next.err
	}
	if len(d.rest) == 0 {
		return 0, d.err
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

func (d *delayed) Close() error {
	err := d.Conn.Close()
	d.once.Do(func() { close(d.closed) })
	d.pump.Wait()
	return err
}

// fragile is a connection that can be cut, or made to swallow what is written to it, and that
// counts what it let through.
type fragile struct {
	net.Conn
	mu      sync.Mutex
	swallow bool
	hold    chan struct{} // writes wait for it; nil lets them pass
	writes  int
}

func (f *fragile) Write(p []byte) (int, error) {
	f.mu.Lock()
	f.writes++
	swallow, hold := f.swallow, f.hold
	f.mu.Unlock()
	if swallow {
		return len(p), nil
	}
	if hold != nil {
		<-hold
		return 0, net.ErrClosed
	}
	return f.Conn.Write(p)
}

func (f *fragile) set(change func(*fragile)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}
