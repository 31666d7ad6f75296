package httpapi

import (
	"encoding/json"
	"strings"

	"github.com/mecha-project/mecha/api/apierr"
)

func (s *Server) metadataGet(r *Request, _ args) {
	b, err := json.Marshal(s.o.About.Metadata())
	if err != nil {
		r.Fail(apierr.Internal.Because(err.Error()))
		return
	}
	r.JSON(200, b)
}

func (s *Server) metadataSet(r *Request, a args) {
	body, err := r.Body()
	if err != nil {
		r.Fail(apierr.BodyRead.Because("failed to read body: " + err.Error()))
		return
	}
	s.o.About.SetAttribute(a[0], string(body))
	r.Empty()
}

func (s *Server) healthz(r *Request, _ args) {
	if id, ok := queryParam(r.Query, "appid"); ok && id != s.o.AppID {
		r.Fail(apierr.HealthAppID.Because("dapr app-id does not match"))
		return
	}
	if waiting := s.o.About.Pending(); len(waiting) > 0 {
		r.Fail(apierr.HealthNotReady.Because("dapr is not ready: [" + strings.Join(waiting, " ") + "]"))
		return
	}
	r.Empty()
}

func (s *Server) healthzOutbound(r *Request, _ args) {
	if !s.o.About.Outbound() {
		r.Fail(apierr.OutboundNotReady.Because("dapr outbound is not ready"))
		return
	}
	r.Empty()
}

func (s *Server) shutdown(r *Request, _ args) {
	force := strings.EqualFold(r.Header.Get("dapr-force-shutdown"), "true")
	r.Empty()
	s.o.About.Shutdown(force)
}
