package httpapi

import (
	"bytes"
	"context"
	"encoding/json"

	"github.com/mecha-project/mecha/api/apierr"
)

// Secret is the secrets service.
type Secret interface {
	Get(ctx context.Context, store, name string, metadata map[string]string) (map[string]string, error)
	GetAll(ctx context.Context, store string, metadata map[string]string) (map[string]map[string]string, error)
}

// secretGet is GET /v1.0/secrets/<store>/<name>.
func (s *Server) secretGet(r *Request, a args) {
	values, err := s.o.Secret.Get(r.Context(), a[0], a[1], r.Metadata())
	switch {
	case err != nil:
		r.Fail(apierr.Secret(a[0], a[1], err))
	case values == nil:
		r.Empty()
	default:
		r.secrets(values)
	}
}

// secretAll is GET /v1.0/secrets/<store>/bulk.
func (s *Server) secretAll(r *Request, a args) {
	all, err := s.o.Secret.GetAll(r.Context(), a[0], r.Metadata())
	switch {
	case err != nil:
		r.Fail(apierr.Secrets(a[0], err))
	case all == nil:
		r.Empty()
	default:
		r.secrets(all)
	}
}

// secrets answers with maps of text, which JSON can always write.
func (r *Request) secrets(values any) {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(values); err != nil { // ends with a line feed
		r.Fail(apierr.Internal.Because("the secrets cannot be written as JSON"))
		return
	}
	r.JSON(200, b.Bytes())
}
