package servers

import (
	"bytes"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/test/untested"
)

// MosquittoPassword is the password of the user mecha of Mosquitto servers.
const MosquittoPassword = "s3cret /p@w"

// Mosquitto is an MQTT broker of a test. It is killed, halted and started again like the database
// servers: see SQL. Sessions and messages outlive Stop; a Kill loses what came since the last save,
// unless SaveAlways was given.
type Mosquitto struct {
	*SQL
	TLSPort       int // TLS; a client may show a certificate
	WebSocketPort int
}

// SaveAlways are lines of mosquitto.conf by which everything is written to the disk when it
// changes.
var SaveAlways = []string{"autosave_on_changes true", "autosave_interval 1"}

// StartMosquitto starts Mosquitto, which lets in the user mecha with MosquittoPassword, and nobody
// else.
func StartMosquitto(tb testing.TB) *Mosquitto { return MosquittoWith(tb) }

// MosquittoWith is StartMosquitto with more lines of mosquitto.conf.
func MosquittoWith(tb testing.TB, lines ...string) *Mosquitto {
	tb.Helper()
	daemon, err := program("mosquitto", "/usr/sbin")
	if err != nil {
		untested.Skip(tb, "Mosquitto: %v (Debian: mosquitto)", err)
	}
	m := &Mosquitto{SQL: newSQL(tb, "mosquitto"), TLSPort: Port(tb), WebSocketPort: Port(tb)}
	in := func(name string) string { return filepath.Join(m.dir, name) }
	m.write(tb, in("passwords"), []byte("mecha:"+mosquittoHash(tb)+"\n"))
	m.configure(tb, lines)
	m.ready = func() error { return errorOr(Answers(m.Port), Answers(m.TLSPort), Answers(m.WebSocketPort)) }
	m.start = func() *exec.Cmd {
		cmd := exec.Command(daemon, "-c", in("mosquitto.conf"))
		return cmd
	}
	m.Start(tb)
	return m
}

// Configure starts the server again with other lines of mosquitto.conf.
func (m *Mosquitto) Configure(tb testing.TB, lines ...string) {
	tb.Helper()
	m.Stop(tb)
	m.configure(tb, lines)
	m.Start(tb)
}

func (m *Mosquitto) configure(tb testing.TB, lines []string) {
	tb.Helper()
	in := func(name string) string { return filepath.Join(m.dir, name) }
	m.write(tb, in("mosquitto.conf"), []byte(strings.Join(append([]string{
		fmt.Sprintf("listener %d 127.0.0.1", m.Port),
		fmt.Sprintf("listener %d 127.0.0.1", m.TLSPort), "cafile " + m.Cert, "certfile " + m.Cert, "keyfile " + in("key.pem"),
		fmt.Sprintf("listener %d 127.0.0.1", m.WebSocketPort), "protocol websockets",
		"allow_anonymous false", "password_file " + in("passwords"), "persistence true", "persistence_location " + m.dir + "/",
	}, lines...), "\n")+"\n"))
}

// mosquittoHash is MosquittoPassword as the password file has it: salted SHA-512.
func mosquittoHash(tb testing.TB) string {
	tb.Helper()
	salt := make([]byte, 12)
	if _, err := rand.Read(salt); err != nil {
		tb.Fatal(err)
	}
	sum := sha512.Sum512(bytes.Join([][]byte{[]byte(MosquittoPassword), salt}, nil))
	return "$6$" + base64.StdEncoding.EncodeToString(salt) + "$" + base64.StdEncoding.EncodeToString(sum[:])
}

// URL is the address of a port of the server in a scheme ("tcp", "ssl", "ws") with the user's name
// and password.
func (m *Mosquitto) URL(scheme string, port int) string {
	return fmt.Sprintf("%s://mecha:%s@127.0.0.1:%d", scheme, strings.NewReplacer(" ", "%20", "/", "%2F", "@", "%40").Replace(MosquittoPassword), port)
}
