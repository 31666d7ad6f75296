// Package vault reads secrets from HashiCorp Vault, and from what speaks its API (OpenBao): the
// key-value engine in its second version, over plain HTTP.
//
// It signs in with a token it is given. It does not renew the token: a Vault agent that keeps one
// in a file does, and the file is read for every request. config.go says how to reach the server,
// client.go is one exchange with it; start at store.
package vault

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"unicode"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Backend lists the parts of this backend.
func Backend() block.Backend {
	return block.Backend{
		Name: "vault",
		Doc:  "Secrets in HashiCorp Vault.",
		Parts: []block.Part{
			block.SecretPart("hashicorp.vault", "Secrets in a key-value engine (version 2) of HashiCorp Vault.", DefaultConfig, New),
		},
	}
}

// maxSecrets bounds what one GetAll reads, one request each.
const maxSecrets = 10_000

// store is a secret store in Vault.
type store struct {
	client
	c      Config
	closed atomic.Bool
}

var (
	_ block.Secret     = (*store)(nil)
	_ block.SecretMany = (*store)(nil)
)

// New opens a Vault as a secret store. It meets the server at the first use.
func New(_ block.Env, c *Config) (block.Secret, error) {
	tls, err := c.tls()
	if err != nil {
		return nil, err
	}
	t := &http.Transport{TLSClientConfig: tls, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 8, IdleConnTimeout: idleTimeout}
	return &store{c: *c, client: client{base: strings.TrimRight(c.VaultAddr, "/"), token: c.token, transport: t,
		http: &http.Client{Transport: t, CheckRedirect: sameSecret}}}, nil
}

// ManyValues implements block.SecretMany.
func (s *store) ManyValues() bool { return s.c.ValueType != text }

func (s *store) check(op fault.Op) error {
	if s.closed.Load() {
		return fault.New(op, fault.Unavailable, "the secret store is closed").WithSent(fault.SentNever)
	}
	return nil
}

// Ping asks the server how it is. What a standby answers is fine: it passes requests on.
func (s *store) Ping(ctx context.Context) error {
	const op fault.Op = "vault.Ping"
	if err := s.check(op); err != nil {
		return err
	}
	if _, err := s.token(); err != nil {
		return fault.New(op, fault.Unavailable, "vaultTokenMountPath").Because(err)
	}
	status, _, err := s.exchange(ctx, op, http.MethodGet, "/v1/sys/health")
	switch {
	case err != nil:
		return err
	case status == http.StatusNotImplemented:
		return fault.New(op, fault.Unavailable, "vault at %s is not initialized", s.base)
	case status == http.StatusServiceUnavailable:
		return fault.New(op, fault.Unavailable, "vault at %s is sealed", s.base)
	}
	return nil
}

// Get reads one secret.
func (s *store) Get(ctx context.Context, name string, metadata map[string]string) (map[string]string, error) {
	const op fault.Op = "vault.Get"
	if err := s.check(op); err != nil {
		return nil, err
	}
	version, err := versionOf(op, metadata)
	if err != nil {
		return nil, err
	}
	return s.read(ctx, op, name, version)
}

// GetAll reads every secret below the prefix.
func (s *store) GetAll(ctx context.Context, metadata map[string]string) (map[string]map[string]string, error) {
	const op fault.Op = "vault.GetAll"
	if err := s.check(op); err != nil {
		return nil, err
	}
	version, err := versionOf(op, metadata)
	if err != nil {
		return nil, err
	}
	names, err := s.list(ctx, op, "", nil)
	if err != nil {
		return nil, err
	}
	all := make(map[string]map[string]string, len(names))
	for _, name := range names {
		values, err := s.read(ctx, op, name, version)
		switch {
		case fault.Of(err) == fault.NotFound: // deleted, or it has no such version
		case err != nil:
			return nil, err
		default:
			all[name] = values
		}
	}
	return all, nil
}

// read gets one version of a secret.
func (s *store) read(ctx context.Context, op fault.Op, name, version string) (map[string]string, error) {
	path, ok := s.path("data", name)
	if !ok {
		return nil, fault.New(op, fault.NotFound, "secret %s not found", name)
	}
	var answer struct {
		Data struct {
			Data json.RawMessage `json:"data"`
		} `json:"data"`
	}
	if err := s.get(ctx, op, http.MethodGet, path+"?version="+version, "secret "+name, &answer); err != nil {
		return nil, err
	}
	raw := answer.Data.Data
	if len(raw) == 0 || string(raw) == "null" {
		return nil, fault.New(op, fault.NotFound, "secret %s not found", name)
	}
	if s.c.ValueType == text {
		return map[string]string{name: string(raw)}, nil
	}
	return values(op, name, raw)
}

// values are the fields of a secret. Those that are not text come as their JSON.
func values(op fault.Op, name string, raw json.RawMessage) (map[string]string, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, fault.New(op, fault.Internal, "secret %s is no object; is enginePath that of a key-value engine, version 2?", name)
	}
	out := make(map[string]string, len(fields))
	for key, v := range fields {
		var s string
		switch {
		case string(v) == "null":
		case json.Unmarshal(v, &s) == nil:
			out[key] = s
		default:
			out[key] = string(v)
		}
	}
	return out, nil
}

// list appends the names of all secrets in a folder and below.
func (s *store) list(ctx context.Context, op fault.Op, folder string, names []string) ([]string, error) {
	path, ok := s.path("metadata", folder)
	if !ok {
		return names, nil
	}
	var answer struct {
		Data struct {
			Keys []string `json:"keys"`
		} `json:"data"`
	}
	err := s.get(ctx, op, "LIST", path, "the list of secrets", &answer)
	if fault.Of(err) == fault.NotFound { // an empty folder does not exist
		return names, nil
	}
	for _, key := range answer.Data.Keys {
		if err != nil {
			break
		}
		inner, isFolder := strings.CutSuffix(key, "/")
		if folder != "" {
			inner = folder + "/" + inner
		}
		switch {
		case len(names) >= maxSecrets:
			err = fault.New(op, fault.TooLarge, "there are more than %d secrets; ask for those you need", maxSecrets)
		case isFolder:
			names, err = s.list(ctx, op, inner, names)
		default:
			names = append(names, inner)
		}
	}
	return names, err
}

// path is where the engine keeps a secret, or a folder of them; "" is the folder of all. ok is
// false for a name that no secret has: the server would clean it and read another one.
func (s *store) path(kind, name string) (string, bool) {
	parts := []string{"", "v1", s.c.EnginePath, kind}
	if p := s.c.prefix(); p != "" {
		parts = append(parts, p)
	}
	out := escape(strings.Join(parts, "/"))
	if name == "" {
		return out, kind == "metadata"
	}
	if !plain(name) {
		return "", false
	}
	return out + "/" + escape(name), true
}

// plain tells whether a server leaves a name as it is.
func plain(name string) bool {
	odd := func(segment string) bool { return segment == "" || segment == "." || segment == ".." }
	return strings.TrimSpace(name) == name && !strings.ContainsFunc(name, unicode.IsControl) &&
		!slices.ContainsFunc(strings.Split(name, "/"), odd)
}

// versionOf is the version of secrets that a request asks for; 0 is the latest.
func versionOf(op fault.Op, metadata map[string]string) (string, error) {
	text, ok := metadata["version_id"]
	if !ok || text == "" {
		return "0", nil
	}
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return "", fault.New(op, fault.Invalid, "version_id %q is not a whole number; 0 is the latest version", text)
	}
	return strconv.FormatUint(n, 10), nil
}

// Close implements block.Component.
func (s *store) Close(context.Context) error {
	s.closed.Store(true)
	s.transport.CloseIdleConnections()
	return nil
}
