package httpapi

import (
	"context"
	"encoding/json"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/config"
)

// Config is the configuration service.
type Config interface {
	Check(store string) error
	Get(ctx context.Context, r config.Request) (map[string]block.ConfigItem, error)
	FollowForApp(ctx context.Context, r config.Request) (id string, err error)
	Unsubscribe(ctx context.Context, id string) error
}

// configRequest reads ?key=a&key=b&metadata.x=y.
func (r *Request) configRequest(store string) config.Request {
	out := config.Request{Store: store, Metadata: r.Metadata()}
	eachParam(r.Query, func(k, v string) bool {
		if k == "key" {
			out.Keys = append(out.Keys, v)
		}
		return true
	})
	return out
}

// configGet is GET /v1.0/configuration/<store>.
func (s *Server) configGet(r *Request, a args) {
	in := r.configRequest(a[0])
	items, err := s.o.Config.Get(r.Context(), in)
	if err != nil {
		r.Fail(apierr.Config(apierr.ConfigGet, a[0], in.Keys, err))
		return
	}
	if len(items) == 0 {
		r.Empty()
		return
	}
	b, err := json.Marshal(config.WireItems(items))
	if err != nil {
		r.Fail(apierr.Config(apierr.ConfigGet, a[0], in.Keys, err))
		return
	}
	r.JSON(200, append(b, '\n'))
}

// configSubscribe is GET /v1.0/configuration/<store>/subscribe: updates are calls to the app.
func (s *Server) configSubscribe(r *Request, a args) {
	in := r.configRequest(a[0])
	id, err := s.o.Config.FollowForApp(r.Context(), in)
	if err != nil {
		r.Fail(apierr.Config(apierr.ConfigSubscribe, a[0], in.Keys, err))
		return
	}
	r.JSON(200, append(apierr.AppendString([]byte(`{"id":`), id), "}\n"...))
}

// configUnsubscribe is GET /v1.0/configuration/<store>/<id>/unsubscribe. A failure has neither an
// errorCode nor an "ok": clients look at the status.
func (s *Server) configUnsubscribe(r *Request, a args) {
	if err := s.o.Config.Check(a[0]); err != nil {
		r.Fail(apierr.Config(apierr.ConfigSubscribe, a[0], nil, err))
		return
	}
	if err := s.o.Config.Unsubscribe(r.Context(), a[1]); err != nil {
		message := "failed to unsubscribe to configuration request " + a[1] + ": " + err.Error()
		r.JSON(500, append(apierr.AppendString([]byte(`{"message":`), message), "}\n"...))
		return
	}
	r.JSON(200, []byte("{\"ok\":true}\n"))
}
