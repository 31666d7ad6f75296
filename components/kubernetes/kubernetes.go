// Package kubernetes reads secrets from the API of a Kubernetes cluster, over plain HTTPS: the two
// requests it makes do not need the cluster's client library, which is larger than this program.
//
// config.go says which cluster and as whom: the pod's own, or one of a kubeconfig file. client.go
// is one exchange with its server; start at store.
package kubernetes

import (
	"context"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"sync/atomic"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Backend lists the parts of this backend.
func Backend() block.Backend {
	return block.Backend{
		Name: "kubernetes",
		Doc:  "Secrets of a Kubernetes cluster.",
		Parts: []block.Part{
			block.SecretPart("kubernetes", "Secret resources of a Kubernetes namespace.", DefaultConfig, New),
		},
	}
}

const (
	maxSecrets = 10_000   // that one GetAll reads
	maxAll     = 64 << 20 // bytes of values that one GetAll reads
	pageSize   = 50       // secrets asked for at once; each has up to 1 MiB
	maxPages   = 1000     // a server may give fewer at once
)

// store is the secrets of a cluster.
type store struct {
	client
	namespace string
	most      int // bytes that one GetAll reads
	closed    atomic.Bool
}

var (
	_ block.Secret     = (*store)(nil)
	_ block.SecretMany = (*store)(nil)
)

// New opens a cluster's secrets. It reads the files that say where the cluster is; the server it
// meets at the first use.
func New(env block.Env, c *Config) (block.Secret, error) {
	to, err := c.cluster()
	if err != nil {
		return nil, err
	}
	s := &store{client: newClient(to), namespace: c.DefaultNamespace, most: maxAll}
	if s.namespace == "" {
		s.namespace = env.Namespace
	}
	return s, nil
}

// ManyValues implements block.SecretMany.
func (s *store) ManyValues() bool { return true }

func (s *store) check(op fault.Op) error {
	if s.closed.Load() {
		return fault.New(op, fault.Unavailable, "the secret store is closed").WithSent(fault.SentNever)
	}
	return nil
}

// Ping asks the server for its version. Who may not see it is answered all the same.
func (s *store) Ping(ctx context.Context) error {
	const op fault.Op = "kubernetes.Ping"
	if err := s.check(op); err != nil {
		return err
	}
	var version struct {
		GitVersion string `json:"gitVersion"`
	}
	status, err := s.get(ctx, op, "/version", "the version", &version)
	if status == http.StatusForbidden {
		return nil
	}
	return err
}

// secret is the part of a Secret resource that is asked for. Values travel in base64.
type secret struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Data map[string][]byte `json:"data"`
}

func (s *secret) values() map[string]string {
	out := make(map[string]string, len(s.Data))
	for k, v := range s.Data {
		out[k] = string(v)
	}
	return out
}

// Get reads one secret of a namespace.
func (s *store) Get(ctx context.Context, name string, metadata map[string]string) (map[string]string, error) {
	const op fault.Op = "kubernetes.Get"
	if err := s.check(op); err != nil {
		return nil, err
	}
	path, namespace, err := s.path(op, metadata)
	if err != nil {
		return nil, err
	}
	if !isName(name) { // no secret has such a name, and as a path it would be another
		return nil, fault.New(op, fault.NotFound, "secret %s not found in namespace %s", name, namespace)
	}
	var got secret
	if _, err := s.get(ctx, op, path+"/"+name, "secret "+name+" of namespace "+namespace, &got); err != nil {
		return nil, err
	}
	if got.Metadata.Name != name {
		return nil, fault.New(op, fault.Internal, "%s answers with another resource than secret %s; is it a Kubernetes API server?", s.base, name)
	}
	return got.values(), nil
}

// GetAll reads every secret of a namespace, page by page.
func (s *store) GetAll(ctx context.Context, metadata map[string]string) (map[string]map[string]string, error) {
	const op fault.Op = "kubernetes.GetAll"
	if err := s.check(op); err != nil {
		return nil, err
	}
	path, namespace, err := s.path(op, metadata)
	if err != nil {
		return nil, err
	}
	all, status, err := s.list(ctx, op, path, namespace)
	if status == http.StatusGone { // it took longer than the server remembers: once more
		all, _, err = s.list(ctx, op, path, namespace)
	}
	return all, err
}

func (s *store) list(ctx context.Context, op fault.Op, path, namespace string) (all map[string]map[string]string, status int, err error) {
	all = map[string]map[string]string{}
	size, next := 0, ""
	for range maxPages {
		query := "?limit=" + strconv.Itoa(pageSize)
		if next != "" {
			query += "&continue=" + url.QueryEscape(next)
		}
		var page struct {
			Kind     string `json:"kind"`
			Metadata struct {
				Continue string `json:"continue"`
			} `json:"metadata"`
			Items []secret `json:"items"`
		}
		if status, err = s.get(ctx, op, path+query, "the secrets of namespace "+namespace, &page); err != nil {
			return nil, status, err
		}
		if page.Kind != "SecretList" {
			return nil, 0, fault.New(op, fault.Internal, "%s answers with something else than a list of secrets; is it a Kubernetes API server?", s.base)
		}
		for i := range page.Items {
			it := &page.Items[i]
			for k, v := range it.Data {
				size += len(k) + len(v)
			}
			all[it.Metadata.Name] = it.values()
		}
		if len(all) > maxSecrets || size > s.most {
			return nil, 0, fault.New(op, fault.TooLarge, "namespace %s has more than %d secrets, or %d MiB of them; ask for those you need", namespace, maxSecrets, s.most>>20)
		}
		if next = page.Metadata.Continue; next == "" {
			return all, status, nil
		}
	}
	return nil, 0, fault.New(op, fault.Internal, "%s goes on listing the secrets of namespace %s after %d pages", s.base, namespace, maxPages)
}

// path is where the secrets of the namespace are that a request means.
func (s *store) path(op fault.Op, metadata map[string]string) (path, namespace string, err error) {
	namespace = s.namespace
	if n := metadata["namespace"]; n != "" {
		namespace = n
	}
	switch {
	case namespace == "":
		return "", "", fault.New(op, fault.Invalid, "no namespace: give it with the request (metadata.namespace), as defaultNamespace, or as NAMESPACE in the environment")
	case !isLabel(namespace):
		return "", "", fault.New(op, fault.Invalid, "%q is no namespace; want small letters, digits and hyphens", namespace)
	}
	return "/api/v1/namespaces/" + namespace + "/secrets", namespace, nil
}

var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// isLabel tells whether a namespace can have this name.
func isLabel(s string) bool { return label.MatchString(s) }

var name = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// isName tells whether a secret can have this name.
func isName(s string) bool { return len(s) <= 253 && name.MatchString(s) }

// Close implements block.Component.
func (s *store) Close(context.Context) error {
	s.closed.Store(true)
	s.transport.CloseIdleConnections()
	return nil
}
