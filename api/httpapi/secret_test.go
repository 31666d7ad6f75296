package httpapi_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

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

func TestSecrets(t *testing.T) {
	one := map[string]string{"b": "2", "a": `<"ü\n`}
	all := map[string]map[string]string{"z": {"z": "1"}, "y": one}
	for name, tt := range map[string]struct {
		target string
		set    secrets
		asked  string
		status int
		body   string
	}{
		"one":            {"/v1.0/secrets/s/k?metadata.version_id=2&other=1", secrets{one: one}, `get s "k" map[version_id:2]`, 200, `{"a":"\u003c\"ü\\n","b":"2"}` + "\n"},
		"a decoded name": {"/v1.0/secrets/s/a%2Fb%3Ac", secrets{one: one}, `get s "a/b:c" map[]`, 200, `{"a":"\u003c\"ü\\n","b":"2"}` + "\n"},
		"blank":          {"/v1.0/secrets/s/k", secrets{one: map[string]string{"k": ""}}, `get s "k" map[]`, 200, `{"k":""}` + "\n"},
		"no values":      {"/v1.0/secrets/s/k", secrets{one: map[string]string{}}, `get s "k" map[]`, 200, "{}\n"},
		"nothing":        {"/v1.0/secrets/s/k", secrets{}, `get s "k" map[]`, 204, ""},
		"all":            {"/v1.0/secrets/s/bulk?metadata.x=y", secrets{all: all}, "all s map[x:y]", 200, `{"y":{"a":"\u003c\"ü\\n","b":"2"},"z":{"z":"1"}}` + "\n"},
		"none at all":    {"/v1.0/secrets/s/bulk", secrets{all: map[string]map[string]string{}}, "all s map[]", 200, "{}\n"},
		"no all":         {"/v1.0/secrets/s/bulk/", secrets{}, "all s map[]", 204, ""},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit()
			*k.secret = tt.set
			x := k.do("GET", tt.target, "")
			if x.Status != tt.status || string(x.Out) != tt.body || k.secret.asked != tt.asked {
				t.Errorf("%d %q, asked %s; want %d %q, %s", x.Status, x.Out, k.secret.asked, tt.status, tt.body, tt.asked)
			}
			if tt.status == 200 && x.Answer.Get("Content-Type") != "application/json" {
				t.Errorf("content type %q", x.Answer.Get("Content-Type"))
			}
		})
	}
}

func TestSecretErrors(t *testing.T) {
	type answer struct {
		Status int
		Body   string
	}
	down := fault.New("op", fault.Unavailable, "vault is down")
	for name, tt := range map[string]struct {
		err      error
		one, all answer
	}{
		"no stores": {fault.New("op", fault.NotReady, "x").With(fault.NoComponents),
			answer{500, `{"errorCode":"ERR_SECRET_STORES_NOT_CONFIGURED","message":"secret store is not configured"}`},
			answer{500, `{"errorCode":"ERR_SECRET_STORES_NOT_CONFIGURED","message":"secret store is not configured"}`}},
		"another store": {fault.New("op", fault.NotFound, "x").With(fault.NoSuchComponent),
			answer{401, `{"errorCode":"ERR_SECRET_STORE_NOT_FOUND","message":"failed finding secret store with key s"}`},
			answer{401, `{"errorCode":"ERR_SECRET_STORE_NOT_FOUND","message":"failed finding secret store with key s"}`}},
		"denied": {fault.New("op", fault.Denied, `access denied by policy to get "k" from "s"`).With(fault.ForbiddenSecret),
			answer{403, `{"errorCode":"ERR_PERMISSION_DENIED","message":"access denied by policy to get \"k\" from \"s\""}`},
			answer{403, `{"errorCode":"ERR_PERMISSION_DENIED","message":"access denied by policy to get \"k\" from \"s\""}`}},
		"denied by the store": {fault.New("op", fault.Denied, "permission denied"),
			answer{500, `{"errorCode":"ERR_SECRET_GET","message":"failed getting secret with key k from secret store s: permission denied"}`},
			answer{500, `{"errorCode":"ERR_SECRET_GET","message":"failed getting secrets from secret store s: permission denied"}`}},
		"missing": {fault.New("op", fault.NotFound, "secret k not found"),
			answer{500, `{"errorCode":"ERR_SECRET_GET","message":"failed getting secret with key k from secret store s: secret k not found"}`},
			answer{500, `{"errorCode":"ERR_SECRET_GET","message":"failed getting secrets from secret store s: secret k not found"}`}},
		"down": {down,
			answer{500, `{"errorCode":"ERR_SECRET_GET","message":"failed getting secret with key k from secret store s: vault is down"}`},
			answer{500, `{"errorCode":"ERR_SECRET_GET","message":"failed getting secrets from secret store s: vault is down"}`}},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit()
			k.secret.err = tt.err
			one, all := k.do("GET", "/v1.0/secrets/s/k", ""), k.do("GET", "/v1.0/secrets/s/bulk", "")
			if d := cmp.Diff(tt.one, answer{one.Status, string(one.Out)}); d != "" {
				t.Errorf("one (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.all, answer{all.Status, string(all.Out)}); d != "" {
				t.Errorf("all (-want +got):\n%s", d)
			}
		})
	}
}
