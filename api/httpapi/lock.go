package httpapi

import (
	"context"
	"strconv"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/components/block"
)

// Lock is the lock service.
type Lock interface {
	TryLock(ctx context.Context, store, resource, owner string, seconds int32) (bool, error)
	Unlock(ctx context.Context, store, resource, owner string) (block.UnlockStatus, error)
}

// tryLock is POST /v1.0-alpha1/lock/<store>.
func (s *Server) tryLock(r *Request, a args) {
	var in runtimev1.TryLockRequest
	if !r.protoBody(&in) {
		return
	}
	ok, err := s.o.Lock.TryLock(r.Context(), a[0], in.GetResourceId(), in.GetLockOwner(), in.GetExpiryInSeconds())
	if err != nil {
		r.Fail(apierr.Lock(apierr.TryLock, a[0], err))
		return
	}
	r.JSON(200, []byte(`{"success":`+strconv.FormatBool(ok)+`}`))
}

// unlock is POST /v1.0-alpha1/unlock/<store>. Its answer has the status as a number.
func (s *Server) unlock(r *Request, a args) {
	var in runtimev1.UnlockRequest
	if !r.protoBody(&in) {
		return
	}
	status, err := s.o.Lock.Unlock(r.Context(), a[0], in.GetResourceId(), in.GetLockOwner())
	if err != nil {
		r.Fail(apierr.Lock(apierr.Unlock, a[0], err))
		return
	}
	r.JSON(200, []byte(`{"status":`+strconv.Itoa(int(status))+`}`))
}

// protoBody reads a body that Dapr defines as the JSON form of a message; an empty one is an
// empty message. It answers and returns false when that fails.
func (r *Request) protoBody(into proto.Message) bool {
	body, err := r.Body()
	if err == nil && len(body) > 0 {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(body, into)
	}
	if err != nil {
		r.Fail(apierr.MalformedRequest.Because("failed deserializing HTTP body: " + err.Error()))
		return false
	}
	return true
}
