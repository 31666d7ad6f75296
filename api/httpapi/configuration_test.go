package httpapi_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/config"
)

// nobody is service invocation without a target.
func nobody(context.Context, *call.Request, call.Responder) error {
	return fault.New("op", fault.Invalid, "no target").With(fault.NoTarget)
}

// configService keeps what it was asked and answers as told.
type configService struct {
	asked      string
	items      map[string]block.ConfigItem
	check, err error
}

func (c *configService) Check(store string) error { return c.check }

func (c *configService) Get(_ context.Context, r config.Request) (map[string]block.ConfigItem, error) {
	c.asked = fmt.Sprintf("get %s %q %v", r.Store, r.Keys, r.Metadata)
	return c.items, c.err
}

func (c *configService) FollowForApp(_ context.Context, r config.Request) (string, error) {
	c.asked = fmt.Sprintf("follow %s %q %v", r.Store, r.Keys, r.Metadata)
	return "an-id", c.err
}

func (c *configService) Unsubscribe(_ context.Context, id string) error {
	c.asked = "unsubscribe " + id
	return c.err
}

func TestConfiguration(t *testing.T) {
	because := func(c fault.Code, r fault.Reason) error { return fault.New("op", c, "words").With(r) }
	items := map[string]block.ConfigItem{"b": {Value: "<2>", Version: "7", Metadata: map[string]string{"m": "1"}}, "a": {Value: "1"}, "none": {}}
	const all = `{"a":{"value":"1"},"b":{"value":"\u003c2\u003e","version":"7","metadata":{"m":"1"}},"none":{}}` + "\n"
	for name, tt := range map[string]struct {
		target string
		set    configService
		asked  string
		status int
		want   string
	}{
		"get":             {"/v1.0/configuration/s?key=a&key=b%2Fc&metadata.x=y&other=1", configService{items: items}, `get s ["a" "b/c"] map[x:y]`, 200, all},
		"alpha":           {"/v1.0-alpha1/configuration/s?key=a", configService{items: items}, `get s ["a"] map[]`, 200, all},
		"a raw semicolon": {"/v1.0/configuration/s?key=a;b", configService{items: items}, `get s [] map[]`, 200, all},
		"nothing":         {"/v1.0/configuration/s?key=a", configService{}, `get s ["a"] map[]`, 204, ""},
		"subscribe":       {"/v1.0/configuration/s/subscribe?key=a&metadata.x=y", configService{}, `follow s ["a"] map[x:y]`, 200, `{"id":"an-id"}` + "\n"},
		"alpha subscribe": {"/v1.0-alpha1/configuration/s/subscribe", configService{}, `follow s [] map[]`, 200, `{"id":"an-id"}` + "\n"},
		"unsubscribe":     {"/v1.0/configuration/s/an%2Fid/unsubscribe", configService{}, "unsubscribe an/id", 200, `{"ok":true}` + "\n"},
		"unknown id": {"/v1.0/configuration/s/x/unsubscribe", configService{err: fault.New("op", fault.NotFound, "subscription with id x does not exist").With(config.NoSubscription)}, "unsubscribe x", 500,
			`{"message":"failed to unsubscribe to configuration request x: subscription with id x does not exist"}` + "\n"},
		"unsubscribe from an unknown store": {"/v1.0/configuration/s/x/unsubscribe", configService{check: because(fault.NotFound, fault.NoSuchComponent)}, "", 400, "ERR_CONFIGURATION_STORE_NOT_FOUND"},
		"no stores":                         {"/v1.0/configuration/s", configService{err: because(fault.NotReady, fault.NoComponents)}, "get s [] map[]", 500, "ERR_CONFIGURATION_STORE_NOT_CONFIGURED"},
		"another store":                     {"/v1.0/configuration/s", configService{err: because(fault.NotFound, fault.NoSuchComponent)}, "get s [] map[]", 400, `"message":"configuration store s not found"`},
		"broken":                            {"/v1.0/configuration/s?key=a", configService{err: because(fault.Unavailable, "")}, `get s ["a"] map[]`, 500, `{"errorCode":"ERR_CONFIGURATION_GET","message":"failed to get [a] from Configuration store s: words"`},
		"broken subscribe":                  {"/v1.0/configuration/s/subscribe", configService{err: because(fault.Unavailable, "")}, "follow s [] map[]", 500, "ERR_CONFIGURATION_SUBSCRIBE"},
		"no app":                            {"/v1.0/configuration/s/subscribe", configService{err: because(fault.NotReady, fault.NoApp)}, "follow s [] map[]", 500, "ERR_APP_CHANNEL_NIL"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(withInvoke(nobody))
			*k.config = tt.set
			x := k.do("GET", tt.target, "")
			if x.Status != tt.status || !strings.Contains(string(x.Out), tt.want) || k.config.asked != tt.asked {
				t.Errorf("%d %q, asked %q; want %d %q, %q", x.Status, x.Out, k.config.asked, tt.status, tt.want, tt.asked)
			}
			if x := k.do("POST", tt.target, ""); x.Status != 404 || !strings.Contains(string(x.Out), "ERR_DIRECT_INVOKE") {
				t.Errorf("POST: %d %s", x.Status, x.Out)
			}
		})
	}
}
