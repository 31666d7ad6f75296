package mqtt

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

// script is a broker that a test plays: what no real one does.
func script(t testing.TB, c *client, play func(net.Conn)) {
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		play(theirs)
		_ = theirs.Close()
	}()
	t.Cleanup(func() { _ = ours.Close(); <-done })
	c.at = &address{target: "broker:1883"}
	c.dial = func(context.Context) (net.Conn, error) { return ours, nil }
}

func welcome(c net.Conn) {
	_, _ = packets.ReadPacket(c)
	_ = packets.NewControlPacket(packets.Connack).Write(c)
}

func TestBrokersThatMisbehave(t *testing.T) {
	raw := func(b ...byte) func(net.Conn) {
		return func(c net.Conn) { welcome(c); _, _ = c.Write(b); _, _ = io.Copy(io.Discard, c) }
	}
	for what, tt := range map[string]struct {
		play func(net.Conn)
		want error
	}{
		"a length without an end":    {raw(0x30, 0xff, 0xff, 0xff, 0xff), errPacket},
		"more than anybody wants":    {raw(0x30, 0xff, 0xff, 0xff, 0x7f), errTooLarge},
		"a packet of no kind":        {raw(0xf0, 0x00), errPacket},
		"what clients send":          {raw(0xc0, 0x00), errPacket},
		"a message cut short":        {raw(0x32, 0x02, 0x00, 0x05), errPacket},
		"a message without a number": {raw(0x32, 0x05, 0x00, 0x01, 't', 0, 0), errPacket},
		"QoS 2":                      {raw(0x34, 0x05, 0x00, 0x01, 't', 0, 1), errPacket},
		"a topic that is no text":    {raw(0x30, 0x03, 0x00, 0x01, 0xff), errPacket},
		"the end in a packet":        {func(c net.Conn) { welcome(c); _, _ = c.Write([]byte{0x30, 0x05, 0x00}) }, io.ErrUnexpectedEOF},
		"the end":                    {welcome, errEOF},
		"silence":                    {raw(), errSilent},
	} {
		c := &client{alive: 50 * time.Millisecond, take: func(*session, *packets.PublishPacket) { t.Errorf("%s: a message came", what) }}
		script(t, c, tt.play)
		s, err := c.open(t.Context())
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		select {
		case <-s.gone:
			if !errors.Is(s.why, tt.want) {
				t.Errorf("%s: %v, want %v", what, s.why, tt.want)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s: the session goes on", what)
		}
		if err := s.publish(t.Context(), "op", "t", false, nil); fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever {
			t.Errorf("%s: publish: %v", what, err)
		}
		s.close()
	}
}

func TestGreetings(t *testing.T) {
	answer := func(b ...byte) func(net.Conn) {
		return func(c net.Conn) { _, _ = packets.ReadPacket(c); _, _ = c.Write(b); _, _ = io.Copy(io.Discard, c) }
	}
	for what, tt := range map[string]struct {
		play func(net.Conn)
		code fault.Code
	}{
		"the id":                {answer(0x20, 2, 0, 2), fault.Invalid},
		"not now":               {answer(0x20, 2, 0, 3), fault.Unavailable},
		"the password":          {answer(0x20, 2, 0, 4), fault.Unauthenticated},
		"no right":              {answer(0x20, 2, 0, 5), fault.Unauthenticated},
		"a code nobody knows":   {answer(0x20, 2, 0, 99), fault.Unavailable},
		"something else":        {answer(0xd0, 0), fault.Unavailable},
		"no word":               {func(net.Conn) {}, fault.Unavailable},
		"silence until the end": {func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, fault.Unavailable},
	} {
		c := &client{id: "me"}
		script(t, c, tt.play)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := c.open(ctx)
		cancel()
		if got := fault.Of(c.refused("op", err)); got != tt.code {
			t.Errorf("%s: %v (%v), want %v", what, err, got, tt.code)
		}
	}
}

// A broker of MQTT 3.1 says that it does not know 3.1.1, and is spoken to in its own words.
func TestOldBroker(t *testing.T) {
	c := &client{id: "me"}
	var asked []string
	c.at = &address{target: "broker:1883"}
	c.dial = func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			p, err := packets.ReadPacket(theirs)
			if err != nil {
				return
			}
			hello := p.(*packets.ConnectPacket)
			asked = append(asked, hello.ProtocolName)
			answer := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
			if hello.ProtocolVersion != 3 {
				answer.ReturnCode = packets.ErrRefusedBadProtocolVersion
			}
			_ = answer.Write(theirs)
			_, _ = io.Copy(io.Discard, theirs)
		}()
		return ours, nil
	}
	s, err := c.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.close()
	if got := strings.Join(asked, " "); got != "MQTT MQIsdp" {
		t.Errorf("asked in %s", got)
	}
}

// A subscription that the broker refuses is an error that stays.
func TestRefusedSubscription(t *testing.T) {
	c := &client{}
	script(t, c, func(conn net.Conn) {
		welcome(conn)
		p, err := packets.ReadPacket(conn)
		if err != nil {
			return
		}
		answer := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
		answer.MessageID, answer.ReturnCodes = p.(*packets.SubscribePacket).MessageID, []byte{0x80}
		_ = answer.Write(conn)
		_, _ = io.Copy(io.Discard, conn)
	})
	s, err := c.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.subscribe(t.Context(), "op", "secret/#"); fault.Of(err) != fault.Denied || !lasting(err) || !strings.Contains(err.Error(), "secret/#") {
		t.Errorf("%v", err)
	}
}

// A message that comes again on a new connection is known while the app has it, and after that as
// long as its acknowledgement could not be written: only then it is certainly the same.
func TestKnownAgain(t *testing.T) {
	type sending struct {
		present, dup bool
		data         string
	}
	for what, tt := range map[string]struct {
		again  sending
		before bool // the app answers while there is no connection
		events int
	}{
		"at the app":                    {sending{true, true, "data"}, false, 1},
		"taken, and nobody told":        {sending{true, true, "data"}, true, 1},
		"a new message":                 {sending{true, false, "data"}, false, 2},
		"another message":               {sending{true, true, "other"}, false, 2},
		"a broker that has forgotten":   {sending{false, true, "data"}, false, 2},
		"forgotten after it was taken":  {sending{false, true, "data"}, true, 2},
		"another one after it is taken": {sending{true, true, "other"}, true, 2},
	} {
		t.Run(what, func(t *testing.T) {
			begun, release := make(chan string, 10), make(chan struct{})
			acknowledged := make(chan uint16, 10)
			dials := make(chan net.Conn, 10)
			serve := func(c net.Conn, s sending) {
				if _, err := packets.ReadPacket(c); err != nil {
					return
				}
				hello := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
				hello.SessionPresent = s.present
				_ = hello.Write(c)
				p, err := packets.ReadPacket(c)
				if err != nil {
					return
				}
				sub := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
				sub.MessageID, sub.ReturnCodes = p.(*packets.SubscribePacket).MessageID, []byte{1}
				_ = sub.Write(c)
				m := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
				m.Qos, m.Dup, m.MessageID, m.TopicName, m.Payload = 1, s.dup, 7, "t", []byte(s.data)
				_ = m.Write(c)
			}
			at := &address{target: "broker:1883"}
			dial := func(ctx context.Context) (net.Conn, error) {
				ours, theirs := net.Pipe()
				select {
				case dials <- theirs:
					return ours, nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
			b := &binding{c: DefaultBindingConfig(), log: slog.New(slog.DiscardHandler), retry: retryPause, park: parkPause, out: newLink(&client{at: at, dial: dial}), reader: client{at: at, dial: dial}}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() {
				done <- b.Read(ctx, func(_ context.Context, e block.BindingEvent) ([]byte, error) {
					begun <- string(e.Data)
					<-release
					return nil, nil
				})
			}()
			first := <-dials
			serve(first, sending{data: "data"})
			<-begun
			_ = first.Close()
			if tt.before {
				close(release)
			}
			second := <-dials
			serve(second, tt.again)
			go func() {
				for {
					p, err := packets.ReadPacket(second)
					if err != nil {
						return
					}
					switch p := p.(type) {
					case *packets.PubackPacket:
						acknowledged <- p.MessageID
					case *packets.DisconnectPacket:
						_ = second.Close()
					}
				}
			}()
			for range tt.events - 1 {
				if got := <-begun; got != tt.again.data {
					t.Errorf("%s came", got)
				}
			}
			if !tt.before {
				select {
				case id := <-acknowledged:
					t.Errorf("%d was acknowledged while the app had it", id)
				case <-time.After(20 * time.Millisecond):
				}
				close(release)
			}
			if id := <-acknowledged; id != 7 {
				t.Errorf("%d was acknowledged", id)
			}
			cancel()
			if err := <-done; fault.Of(err) != fault.Canceled {
				t.Error(err)
			}
			_ = second.Close()
			if len(begun)+len(acknowledged) != 0 {
				t.Errorf("%d more events, %d more acknowledgements", len(begun), len(acknowledged))
			}
			b.out.close()
		})
	}
}

// Whatever a broker sends, the reader ends, and holds no more than it was sent.
func FuzzReadPacket(f *testing.F) {
	for _, seed := range [][]byte{{0x20, 2, 0, 0}, {0x32, 6, 0, 1, 't', 0, 1, 'x'}, {0x90, 3, 0, 1, 0x80}, {0x40, 2, 0, 1}, {0xd0, 0}, {0x30, 0xff, 0xff, 0xff, 0x7f}, {0x82, 8, 0, 1, 0, 3, 'a', '/', 'b', 1}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReader(bytes.NewReader(data))
		for range len(data) + 1 {
			p, err := readPacket(r)
			if err != nil {
				return
			}
			if m, ok := p.(*packets.PublishPacket); ok && len(m.Payload) > len(data) {
				t.Errorf("a payload of %d bytes in %d", len(m.Payload), len(data))
			}
		}
		t.Error("the reader goes on")
	})
}

// No address makes the reader fail, or shows itself in an error.
func FuzzAddress(f *testing.F) {
	for _, seed := range []string{"tcp://u:p@h:1", "ssl://h", "wss://u@h/mqtt?x", "ws://h", "tcp://", "tcp://[::1]:2", "mqtt://u:a/b@h", "%", "tcp://h:99999"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c := ConnConfig{URL: conf.Secret(text)}
		a, err := c.address()
		if err != nil {
			if len(text) > 20 && strings.Contains(err.Error(), text) {
				t.Errorf("the error has the address: %v", err)
			}
			return
		}
		if host, port, err := net.SplitHostPort(a.target); err != nil || port == "" || host == "" {
			t.Errorf("%q: target %q", text, a.target)
		}
		if a.path != "" && !strings.HasPrefix(a.path, "/") {
			t.Errorf("%q: path %q", text, a.path)
		}
	})
}
