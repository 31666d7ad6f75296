package mecha

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"math"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
)

// Client is a connection to a sidecar. It is safe for concurrent use.
type Client struct {
	conn *grpc.ClientConn
	own  bool
	msg  mechav1.MessagingClient
}

// Option changes how Dial connects.
type Option func(*dialing)

type dialing struct {
	address, token string
	more           []grpc.DialOption
}

// WithAddress names the sidecar: "host:port", "unix:///path", "https://host:port", or any target of
// gRPC, also with ?tls=true behind it. The default is the environment's.
func WithAddress(address string) Option { return func(d *dialing) { d.address = address } }

// WithToken proves to the sidecar who calls. The default is the environment's.
func WithToken(token string) Option { return func(d *dialing) { d.token = token } }

// WithDialOptions adds options of gRPC.
func WithDialOptions(o ...grpc.DialOption) Option {
	return func(d *dialing) { d.more = append(d.more, o...) }
}

// Dial makes a client of the sidecar beside this process. Without options it is found as Dapr's SDKs
// find it: by MECHA_GRPC_ENDPOINT, DAPR_GRPC_ENDPOINT, MECHA_GRPC_PORT or DAPR_GRPC_PORT, the first that
// is set, else at port 50001 of this host; the token is MECHA_API_TOKEN or DAPR_API_TOKEN. It does not wait
// for the sidecar: calls do.
func Dial(options ...Option) (*Client, error) {
	d := dialing{address: addressOf(os.Getenv), token: cmp.Or(os.Getenv("MECHA_API_TOKEN"), os.Getenv("DAPR_API_TOKEN"))}
	for _, o := range options {
		o(&d)
	}
	target, secure, err := parseAddress(d.address)
	if err != nil {
		return nil, err
	}
	creds := insecure.NewCredentials()
	if secure {
		creds = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	// What is larger than a frame usually is, is the sidecar's to refuse.
	dial := []grpc.DialOption{grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32)),
		grpc.WithInitialWindowSize(1 << 20), grpc.WithInitialConnWindowSize(4 << 20),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second}, MinConnectTimeout: 5 * time.Second})}
	if d.token != "" {
		dial = append(dial, grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return next(metadata.AppendToOutgoingContext(ctx, tokenKey, d.token), method, req, reply, cc, opts...)
		}), grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return next(metadata.AppendToOutgoingContext(ctx, tokenKey, d.token), desc, cc, method, opts...)
		}))
	}
	conn, err := grpc.NewClient(target, append(dial, d.more...)...)
	if err != nil {
		return nil, fmt.Errorf("mecha: sidecar at %q: %w", d.address, err)
	}
	return &Client{conn: conn, own: true, msg: mechav1.NewMessagingClient(conn)}, nil
}

const tokenKey = "dapr-api-token"

// New makes a client of a connection, which stays the caller's.
func New(conn *grpc.ClientConn) *Client {
	return &Client{conn: conn, msg: mechav1.NewMessagingClient(conn)}
}

// Conn is the connection, for the stubs of other services.
func (c *Client) Conn() *grpc.ClientConn { return c.conn }

// Close closes a connection that Dial made. Publishers and consumers are to be closed before.
func (c *Client) Close() error {
	if !c.own {
		return nil
	}
	return c.conn.Close()
}

func addressOf(env func(string) string) string {
	for _, name := range []string{"MECHA_GRPC_ENDPOINT", "DAPR_GRPC_ENDPOINT"} {
		if v := env(name); v != "" {
			return v
		}
	}
	return net.JoinHostPort("127.0.0.1", cmp.Or(env("MECHA_GRPC_PORT"), env("DAPR_GRPC_PORT"), "50001"))
}

// parseAddress makes a target of gRPC of an address.
func parseAddress(address string) (target string, secure bool, err error) {
	rest, query, _ := strings.Cut(address, "?")
	switch values, err := url.ParseQuery(query); {
	case err != nil || rest == "":
		return "", false, fmt.Errorf("mecha: %q is no address of a sidecar; host:port is one", address)
	case values.Get("tls") == "true":
		secure = true
	case values.Has("tls") && values.Get("tls") != "false":
		return "", false, fmt.Errorf("mecha: %q: tls is true or false", address)
	}
	scheme, host, ok := strings.Cut(rest, "://")
	switch {
	case !ok:
		return rest, secure, nil
	case scheme == "https":
		secure = true
	case scheme != "http":
		return rest, secure, nil // gRPC's own
	}
	host = strings.TrimSuffix(host, "/")
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(strings.Trim(host, "[]"), "443")
	}
	return host, secure, nil
}

// random is a name that nobody else has.
func random() string {
	b := make([]byte, 12)
	_, _ = rand.Read(b) // it never fails
	return hex.EncodeToString(b)
}
