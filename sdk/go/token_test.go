package mecha_test

import (
	"testing"

	mecha "github.com/mecha-project/mecha/sdk/go"
	"github.com/mecha-project/mecha/test/fakeengine"
)

// The token goes with calls and streams.
func TestToken(t *testing.T) {
	s, err := listen(fakeengine.New(), "127.0.0.1:0", "secret", 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for token, want := range map[string]string{"secret": "", "wrong": "Unauthorized", "": "Unauthorized"} {
		t.Setenv("DAPR_API_TOKEN", token)
		c, err := mecha.Dial(mecha.WithAddress(s.address))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.DescribeTopic(t.Context(), orders); mecha.ReasonOf(err) != want {
			t.Errorf("token %q: %v", token, err)
		}
		p := publisher(t, c, mecha.PublisherOptions{})
		if _, err := p.Publish(limited(t), mecha.Entry{}); mecha.ReasonOf(err) != want {
			t.Errorf("token %q: %v", token, err)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		c.Close()
	}
}

// A sidecar without the service refuses for good; it is not asked again and again.
func TestSidecarWithoutMessaging(t *testing.T) {
	_, c := serve(t, nil, 4<<20)
	if err := consume(t, c, mecha.ConsumeOptions{}, nil).wait(); err == nil {
		t.Error("Consume ended without an error")
	}
	if _, err := publisher(t, c, mecha.PublisherOptions{}).Publish(limited(t), mecha.Entry{}); err == nil || limited(t).Err() != nil {
		t.Errorf("Publish: %v", err)
	}
}
