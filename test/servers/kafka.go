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
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mecha-project/mecha/test/untested"
)

// KafkaVersion is the release that StartKafka runs, that of deploy/dev/kafka/pom.xml.
const KafkaVersion = "4.1.0"

// The user of the SASL listeners, by PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512.
const (
	KafkaUser     = "mecha"
	KafkaPassword = "s3cret"
)

// Kafka is a Kafka broker that a test started: one node in KRaft mode, with its controller. Its
// listeners all answer at 127.0.0.1. Its fields do not change when it starts again.
//
// A client is told the listener's own address by the broker, so a relay in front of one would be
// gone around: Gate is the way to stand between.
type Kafka struct {
	*Process
	Addr    string // host:port, plaintext
	SASL    string // plaintext, wants KafkaUser
	TLS     string // TLS; a client's certificate is not asked for
	MTLS    string // TLS; wants ClientCert
	SASLTLS string // TLS, wants KafkaUser
	// CA, ClientCert and ClientKey are files. CA signed the brokers' certificate, for 127.0.0.1 and
	// localhost, and the client's.
	CA, ClientCert, ClientKey string

	dir            string
	home           string // what deploy/dev/kafka/fetch left
	gate, gateBack string // addresses of the listener behind Gate: told to clients, and its own
}

// StartKafka runs a broker in a second or two. Settings are lines of its properties, which come
// last: "auto.create.topics.enable=false". Sessions of consumer groups may be as short as 1 s, a
// new group starts at once, and what is acknowledged survives the death of the process.
func StartKafka(tb testing.TB, settings ...string) *Kafka {
	tb.Helper()
	k := &Kafka{dir: tb.TempDir(), home: kafkaHome(tb)}
	controller := ""
	for _, a := range []*string{&k.Addr, &k.SASL, &k.TLS, &k.MTLS, &k.SASLTLS, &k.gate, &k.gateBack, &controller} {
		*a = fmt.Sprintf("127.0.0.1:%d", Port(tb))
	}
	k.certify(tb)
	if err := os.CopyFS(filepath.Join(k.dir, "data"), os.DirFS(filepath.Join(k.home, "seed"))); err != nil {
		tb.Fatal(err)
	}
	lines := []string{
		"process.roles=broker,controller", "node.id=1", "controller.quorum.voters=1@" + controller, "controller.listener.names=CONTROLLER",
		"listeners=PLAIN://" + k.Addr + ",SASL://" + k.SASL + ",TLS://" + k.TLS + ",MTLS://" + k.MTLS + ",SASLTLS://" + k.SASLTLS + ",GATE://" + k.gateBack + ",CONTROLLER://" + controller,
		"advertised.listeners=PLAIN://" + k.Addr + ",SASL://" + k.SASL + ",TLS://" + k.TLS + ",MTLS://" + k.MTLS + ",SASLTLS://" + k.SASLTLS + ",GATE://" + k.gate,
		"listener.security.protocol.map=PLAIN:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL,MTLS:SSL,SASLTLS:SASL_SSL,GATE:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"inter.broker.listener.name=PLAIN", "log.dirs=" + filepath.Join(k.dir, "data"),
		"sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
		"ssl.keystore.type=PEM", "ssl.keystore.location=" + filepath.Join(k.dir, "broker.pem"),
		"ssl.truststore.type=PEM", "ssl.truststore.location=" + k.CA, "listener.name.mtls.ssl.client.auth=required",
		// One node keeps everything once.
		"offsets.topic.replication.factor=1", "offsets.topic.num.partitions=4",
		"transaction.state.log.replication.factor=1", "transaction.state.log.min.isr=1", "transaction.state.log.num.partitions=4",
		"share.coordinator.state.topic.replication.factor=1", "share.coordinator.state.topic.min.isr=1", "share.coordinator.state.topic.num.partitions=4",
		// A broker that was killed may come back as soon as its controller has given it up.
		"broker.session.timeout.ms=2000", "broker.heartbeat.interval.ms=300",
		"group.initial.rebalance.delay.ms=0", "group.min.session.timeout.ms=1000",
		"group.consumer.min.session.timeout.ms=1000", "group.consumer.min.heartbeat.interval.ms=100",
		"group.consumer.session.timeout.ms=6000", "group.consumer.heartbeat.interval.ms=500",
		// Small: threads and memory of a broker that serves many are wasted here.
		"num.network.threads=1", "num.io.threads=4", "background.threads=2", "log.cleaner.dedupe.buffer.size=2097152",
	}
	for _, listener := range []string{"sasl", "sasltls"} {
		const users = "org.apache.kafka.common.security."
		lines = append(lines,
			"listener.name."+listener+".plain.sasl.jaas.config="+users+"plain.PlainLoginModule required user_"+KafkaUser+"=\""+KafkaPassword+"\";",
			"listener.name."+listener+".scram-sha-256.sasl.jaas.config="+users+"scram.ScramLoginModule required;",
			"listener.name."+listener+".scram-sha-512.sasl.jaas.config="+users+"scram.ScramLoginModule required;")
	}
	if err := os.WriteFile(filepath.Join(k.dir, "properties"), []byte(strings.Join(append(lines, settings...), "\n")+"\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	k.Restart(tb)
	return k
}

// Restart runs the broker again, at the same addresses and with the same data, after Stop or Kill.
func (k *Kafka) Restart(tb testing.TB) {
	tb.Helper()
	java, err := program("java")
	if err != nil {
		untested.Skip(tb, "Kafka: %v (Debian: default-jdk-headless)", err)
	}
	// The archive of classes is for just these jars and this collector; an unfit one is passed over.
	cmd := exec.Command(java, "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
		"-XX:SharedArchiveFile="+filepath.Join(k.home, "classes.jsa"), "-Xlog:cds=off", "-Xlog:cds+dynamic=off",
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", filepath.Join(k.home, "jars")+"/*",
		"kafka.Kafka", filepath.Join(k.dir, "properties"))
	client, err := kgo.NewClient(kgo.SeedBrokers(k.Addr), kgo.RequestRetries(0), kgo.RetryTimeout(time.Second))
	if err != nil {
		tb.Fatal(err)
	}
	defer client.Close()
	k.Process = Start(tb, cmd, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return client.Ping(ctx)
	})
}

// Stop ends the broker in order, as SIGTERM does, and waits for its end.
func (k *Kafka) Stop(tb testing.TB) {
	tb.Helper()
	_ = syscall.Kill(k.cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-k.done:
	case <-time.After(30 * time.Second):
		tb.Fatalf("Kafka does not stop\n%s", k.out.String())
	}
}

// Log is what the broker has printed since it was last started: errors.
func (k *Kafka) Log() string { return k.out.String() }

// CreateTopic makes a topic and waits until all of it can be used. Settings are the topic's:
// "retention.ms=1000".
func (k *Kafka) CreateTopic(tb testing.TB, name string, partitions int, settings ...string) {
	tb.Helper()
	admin := k.Admin(tb)
	defer admin.Close()
	configs := map[string]*string{}
	for _, s := range settings {
		key, value, _ := strings.Cut(s, "=")
		configs[key] = &value
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := admin.CreateTopic(ctx, int32(partitions), 1, configs, name); err != nil {
		tb.Fatalf("topic %s: %v", name, err)
	}
	for ctx.Err() == nil {
		if ends, err := admin.ListEndOffsets(ctx, name); err == nil && ends.Error() == nil && len(ends[name]) == partitions {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	tb.Fatalf("topic %s: its partitions are not there", name)
}

// Admin is a client for looking at the broker, to be closed.
func (k *Kafka) Admin(tb testing.TB) *kadm.Client {
	tb.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(k.Addr))
	if err != nil {
		tb.Fatal(err)
	}
	return kadm.NewClient(client)
}

// Gate stands between clients and the broker. A client whose only broker is Gate.Addr stays behind
// it. There may be one at a time.
func (k *Kafka) Gate(tb testing.TB) *Gate {
	tb.Helper()
	return newGate(tb, k.gate, k.gateBack)
}

// Gate passes connections on, and can hold back what they carry.
type Gate struct {
	Addr string // host:port, or the path of a socket
	dial func() (net.Conn, error)

	mu    sync.Mutex
	free  sync.Cond             // of mu; told when held ends
	held  bool                  // guarded by mu
	over  bool                  // guarded by mu
	conns map[net.Conn]struct{} // guarded by mu
	work  sync.WaitGroup
}

func newGate(tb testing.TB, at, to string) *Gate {
	tb.Helper()
	return NewGate(tb, "tcp", at, to)
}

// NewGate stands between clients and any server: at and to are addresses of a network as net.Dial
// takes them.
func NewGate(tb testing.TB, network, at, to string) *Gate {
	tb.Helper()
	l, err := net.Listen(network, at)
	if err != nil {
		tb.Fatal(err)
	}
	dial := func() (net.Conn, error) { return (&net.Dialer{Timeout: 5 * time.Second}).Dial(network, to) }
	g := &Gate{Addr: l.Addr().String(), dial: dial, conns: map[net.Conn]struct{}{}}
	g.free.L = &g.mu
	g.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.work.Go(func() { g.serve(c) })
		}
	})
	tb.Cleanup(func() {
		_ = l.Close()
		g.mu.Lock()
		g.over = true
		g.mu.Unlock()
		g.Cut()
		g.work.Wait()
	})
	return g
}

// Hold lets no byte pass from now on, and breaks nothing: both sides see a connection that is
// silent. New connections are taken and stay silent too.
func (g *Gate) Hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held = true
}

// Release lets everything pass that was held.
func (g *Gate) Release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held = false
	g.free.Broadcast()
}

// Cut breaks every connection there is. New ones are taken.
func (g *Gate) Cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		_ = c.Close()
	}
	g.free.Broadcast()
}

func (g *Gate) serve(c net.Conn) {
	defer c.Close()
	there, err := g.dial()
	if err != nil {
		return
	}
	defer there.Close()
	g.mu.Lock()
	if g.over {
		g.mu.Unlock()
		return
	}
	g.conns[c], g.conns[there] = struct{}{}, struct{}{}
	g.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { g.pump(c, there) })
	both.Go(func() { g.pump(there, c) })
	both.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.conns, c)
	delete(g.conns, there)
}

func (g *Gate) pump(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && g.pass(from) {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pass waits while the gate holds; false when the connection is to end.
func (g *Gate) pass(c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.held && !g.over {
		g.free.Wait()
	}
	return !g.over
}

// kafkaHome is where deploy/dev/kafka/fetch leaves the broker.
func kafkaHome(tb testing.TB) string {
	tb.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		untested.Skip(tb, "Kafka: %v", err)
	}
	home := filepath.Join(cache, "mecha", "kafka-"+KafkaVersion)
	if _, err := os.Stat(filepath.Join(home, "complete")); err != nil {
		untested.Skip(tb, "Kafka %s is not there; deploy/dev/kafka/fetch gets it", KafkaVersion)
	}
	return home
}

// certify makes an authority, and what it signs: the broker's certificate and a client's.
func (k *Kafka) certify(tb testing.TB) {
	tb.Helper()
	file := func(name string, blocks ...*pem.Block) string {
		path := filepath.Join(k.dir, name)
		var text []byte
		for _, b := range blocks {
			text = append(text, pem.EncodeToMemory(b)...)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			tb.Fatal(err)
		}
		return path
	}
	now := time.Now()
	var parent *x509.Certificate
	var parentKey *ecdsa.PrivateKey
	issue := func(t *x509.Certificate) (cert, key *pem.Block) {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			tb.Fatal(err)
		}
		t.SerialNumber, t.NotBefore, t.NotAfter = big.NewInt(now.UnixNano()), now.Add(-time.Hour), now.Add(24*time.Hour)
		by, byKey := parent, parentKey
		if by == nil {
			by, byKey = t, own
			parent, parentKey = t, own
		}
		der, err := x509.CreateCertificate(rand.Reader, t, by, &own.PublicKey, byKey)
		if err != nil {
			tb.Fatal(err)
		}
		secret, err := x509.MarshalPKCS8PrivateKey(own)
		if err != nil {
			tb.Fatal(err)
		}
		return &pem.Block{Type: "CERTIFICATE", Bytes: der}, &pem.Block{Type: "PRIVATE KEY", Bytes: secret}
	}
	ca, _ := issue(&x509.Certificate{Subject: pkix.Name{CommonName: "tests"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	k.CA = file("ca.pem", ca)
	cert, key := issue(&x509.Certificate{Subject: pkix.Name{CommonName: "localhost"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	file("broker.pem", key, cert)
	cert, key = issue(&x509.Certificate{Subject: pkix.Name{CommonName: "client"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	k.ClientCert, k.ClientKey = file("client.pem", cert), file("client.key", key)
}

// Jars is the folder of the broker's jars, among which are Kafka's own clients.
func (k *Kafka) Jars() string { return filepath.Join(k.home, "jars") }
