package servers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/untested"
)

// RabbitMQPassword is the password of the user mecha of RabbitMQ servers. It has letters that a
// URL must escape.
const RabbitMQPassword = "s3cret /p@w"

// RabbitMQ is a RabbitMQ server of a test, with a node name, a cookie and folders of its own, and
// an epmd of its own that nodes find each other by. It is killed, halted and started again like the
// database servers: see SQL.
type RabbitMQ struct {
	*SQL
	TLSPort int

	epmd int // port
	ctl  string
	env  []string
}

// StartRabbitMQ starts RabbitMQ with the user mecha, RabbitMQPassword and the virtual host "/",
// without and with TLS; there a client may show a certificate. It takes about five seconds: see
// Shared.
func StartRabbitMQ(tb testing.TB) *RabbitMQ { return RabbitMQWith(tb) }

// RabbitMQWith is StartRabbitMQ with more lines of rabbitmq.conf.
func RabbitMQWith(tb testing.TB, lines ...string) *RabbitMQ {
	tb.Helper()
	const folder = "/usr/lib/rabbitmq/bin" // those in /usr/sbin change the user and want the system's folders
	server, err := program("rabbitmq-server", folder)
	if isProgram(folder + "/rabbitmq-server") {
		server, err = folder+"/rabbitmq-server", nil
	}
	if err != nil {
		untested.Skip(tb, "RabbitMQ: %v (Debian: rabbitmq-server)", err)
	}
	epmd, err := program("epmd")
	if err != nil {
		untested.Skip(tb, "RabbitMQ: %v (Debian: erlang-base)", err)
	}
	r := &RabbitMQ{SQL: newSQL(tb, "rabbitmq"), TLSPort: Port(tb), epmd: Port(tb), ctl: filepath.Join(filepath.Dir(server), "rabbitmqctl")}
	in := func(name string) string { return filepath.Join(r.dir, name) }
	node := fmt.Sprintf("mecha%d@localhost", r.Port)
	r.env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=" + r.dir,
		"RABBITMQ_NODENAME=" + node, "RABBITMQ_DIST_PORT=" + strconv.Itoa(Port(tb)),
		"ERL_EPMD_PORT=" + strconv.Itoa(r.epmd), "ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_MNESIA_BASE=" + in("mnesia"), "RABBITMQ_LOG_BASE=" + in("log"), "RABBITMQ_LOGS=-", "RABBITMQ_PID_FILE=" + in("pid"),
		"RABBITMQ_CONF_ENV_FILE=/dev/null", "RABBITMQ_CONFIG_FILE=" + in("rabbitmq"), "RABBITMQ_ADVANCED_CONFIG_FILE=" + in("advanced.config"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + in("plugins"),
		"NOTIFY_SOCKET=" + in("none"), // then the script becomes the server, with no shell between
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"}
	definitions, err := json.Marshal(map[string]any{
		"users":       []any{map[string]any{"name": "mecha", "password": RabbitMQPassword, "tags": "administrator"}},
		"vhosts":      []any{map[string]any{"name": "/"}},
		"permissions": []any{map[string]any{"user": "mecha", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}}})
	if err != nil {
		tb.Fatal(err)
	}
	r.write(tb, in("definitions.json"), definitions)
	r.write(tb, in("plugins"), []byte("[]."))
	r.write(tb, in("rabbitmq.conf"), []byte(strings.Join(append([]string{
		fmt.Sprintf("listeners.tcp.1 = 127.0.0.1:%d", r.Port), fmt.Sprintf("listeners.ssl.1 = 127.0.0.1:%d", r.TLSPort),
		"ssl_options.cacertfile = " + r.Cert, "ssl_options.certfile = " + r.Cert, "ssl_options.keyfile = " + in("key.pem"),
		"ssl_options.verify = verify_peer", "ssl_options.fail_if_no_peer_cert = false",
		"loopback_users = none", "load_definitions = " + in("definitions.json"), "log.console.level = warning",
		"disk_free_limit.absolute = 1MB", // a full disk of the machine is not what tests are about
	}, lines...), "\n")+"\n"))
	names := r.command(epmd, "-port", strconv.Itoa(r.epmd), "-address", "127.0.0.1")
	Start(tb, names, func() error { return Answers(r.epmd) })
	r.ready = func() error { return errorOr(r.greets(), Answers(r.TLSPort)) }
	r.start = func() *exec.Cmd { return r.command(server) }
	r.Start(tb)
	return r
}

func errorOr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *RabbitMQ) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Dir = slices.Clone(r.env), r.dir
	cmd.SysProcAttr = r.attr()
	return cmd
}

// greets tells whether the server speaks AMQP: it listens a little before.
func (r *RabbitMQ) greets() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", r.Port))
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte("AMQP\x00\x00\x09\x01")); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

// URL is the server's address with the user's name and password, as clients take it.
func (r *RabbitMQ) URL() string { return r.URLAt(r.Port) }

// URLAt is the same at another port, such as that of a Relay.
func (r *RabbitMQ) URLAt(port int) string {
	u := url.URL{Scheme: "amqp", User: url.UserPassword("mecha", RabbitMQPassword), Host: fmt.Sprintf("127.0.0.1:%d", port), Path: "/"}
	if port == r.TLSPort {
		u.Scheme = "amqps"
	}
	return u.String()
}

// Ctl runs rabbitmqctl and returns what it prints: Ctl(t, "list_queues", "-q", "name", "messages").
// It takes about a second.
func (r *RabbitMQ) Ctl(tb testing.TB, args ...string) string {
	tb.Helper()
	out, err := r.command(r.ctl, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("rabbitmqctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
