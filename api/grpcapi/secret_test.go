package grpcapi_test

import (
	"context"
	"fmt"
	"testing"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/components/fault"
)

// secrets is the secrets service: it keeps what it was asked and answers as told.
type secrets struct {
	asked string
	one   map[string]string
	all   map[string]map[string]string
	err   error
}

func (s *secrets) Get(_ context.Context, store, name string, md map[string]string) (map[string]string, error) {
	s.asked = fmt.Sprintf("get %s %q %v", store, name, md)
	return s.one, s.err
}

func (s *secrets) GetAll(_ context.Context, store string, md map[string]string) (map[string]map[string]string, error) {
	s.asked = fmt.Sprintf("all %s %v", store, md)
	return s.all, s.err
}

// Bytes that are not UTF-8, which the environment may hold, hide nothing else.
func TestSecrets(t *testing.T) {
	s := &secrets{one: map[string]string{"a": "1", "odd": "x\xffy"}}
	s.all = map[string]map[string]string{"one": s.one, "odd\xff": {"b": ""}, "none": {}}
	k := newKit(t, grpcapi.Options{Secret: s})
	one, err := k.GetSecret(within(t), &runtimev1.GetSecretRequest{StoreName: "s", Key: "a/b", Metadata: map[string]string{"version_id": "2"}})
	if d := cmp.Diff(map[string]string{"a": "1", "odd": "x\uFFFDy"}, one.GetData()); err != nil || d != "" {
		t.Errorf("one: %v (-want +got):\n%s", err, d)
	}
	if s.asked != `get s "a/b" map[version_id:2]` {
		t.Errorf("asked %s", s.asked)
	}
	all, err := k.GetBulkSecret(within(t), &runtimev1.GetBulkSecretRequest{StoreName: "s", Metadata: map[string]string{"x": "y"}})
	got := map[string]map[string]string{}
	for name, v := range all.GetData() {
		got[name] = v.GetSecrets()
	}
	want := map[string]map[string]string{"one": {"a": "1", "odd": "x\uFFFDy"}, "odd\uFFFD": {"b": ""}, "none": nil}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("all: %v (-want +got):\n%s", err, d)
	}
	if s.asked != "all s map[x:y]" {
		t.Errorf("asked %s", s.asked)
	}
}

func TestSecretErrors(t *testing.T) {
	s := &secrets{}
	k := newKit(t, grpcapi.Options{Secret: s})
	for name, tt := range map[string]struct {
		err      error
		code     codes.Code
		one, all string
	}{
		"no stores":     {fault.New("op", fault.NotReady, "x").With(fault.NoComponents), codes.FailedPrecondition, "secret store is not configured", ""},
		"another store": {fault.New("op", fault.NotFound, "x").With(fault.NoSuchComponent), codes.InvalidArgument, "failed finding secret store with key s", ""},
		"denied":        {fault.New("op", fault.Denied, "access denied").With(fault.ForbiddenSecret), codes.PermissionDenied, "access denied", ""},
		"missing": {fault.New("op", fault.NotFound, "no such secret"), codes.Internal,
			"failed getting secret with key k from secret store s: no such secret", "failed getting secrets from secret store s: no such secret"},
	} {
		t.Run(name, func(t *testing.T) {
			s.err = tt.err
			_, one := k.GetSecret(within(t), &runtimev1.GetSecretRequest{StoreName: "s", Key: "k"})
			_, all := k.GetBulkSecret(within(t), &runtimev1.GetBulkSecretRequest{StoreName: "s"})
			if tt.all == "" {
				tt.all = tt.one
			}
			for want, err := range map[string]error{tt.one: one, tt.all: all} {
				st := status.Convert(err)
				if st.Code() != tt.code || st.Message() != want || len(st.Details()) != 0 {
					t.Errorf("%v %q with %d details, want %v %q and none", st.Code(), st.Message(), len(st.Details()), tt.code, want)
				}
			}
		})
	}
}
