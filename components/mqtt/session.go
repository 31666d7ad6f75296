package mqtt

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/mecha-project/mecha/components/fault"
)

const (
	// keepAlive is how often the client shows that it lives; a broker that hears nothing for half as
	// long again counts it as gone.
	keepAlive = 30 * time.Second
	// connectPatience bounds connecting, TLS and signing in. The callers' own deadlines come first.
	connectPatience = 10 * time.Second
	// answerPatience bounds an answer of the broker, and a write to it.
	answerPatience = 10 * time.Second
	// maxPacket is the largest packet that is read. The protocol's own limit is four times as much.
	maxPacket = 64 << 20
)

// client says who connects, and to what.
type client struct {
	at    *address
	dial  func(context.Context) (net.Conn, error)
	id    string
	clean bool
	alive time.Duration // how often to show it; 0 means keepAlive
	// take gets the messages, one after the other; the connection waits for it. nil: there are none.
	take func(*session, *packets.PublishPacket)
}

// session is one connection to a broker, from its CONNACK to its end. It is safe for concurrent use.
type session struct {
	conn    net.Conn
	where   string
	present bool // the broker remembers the client
	take    func(*session, *packets.PublishPacket)
	alive   time.Duration

	gone chan struct{} // closed at the end
	why  error         // set before gone is closed
	once sync.Once
	work sync.WaitGroup // added to under mu, and not after the end

	turn chan struct{} // holds one while a packet is written

	mu      sync.Mutex
	last    uint16                 // guarded by mu
	waiting map[uint16]chan []byte // guarded by mu; who waits for the answer to a packet
}

// refusal is a CONNACK that says no.
type refusal byte

func (r refusal) Error() string {
	if text, ok := packets.ConnackReturnCodes[byte(r)]; ok {
		return text
	}
	return fmt.Sprintf("return code %d", byte(r))
}

var (
	errClosed   = errors.New("the component is closed")
	errEOF      = errors.New("the broker closed the connection")
	errSilent   = errors.New("the broker is silent")
	errPacket   = errors.New("the broker sent what is no MQTT 3.1.1")
	errTooLarge = fmt.Errorf("the broker sent a packet of more than %d MiB", maxPacket>>20)
)

// open connects and signs in, before ctx ends. A broker that knows only MQTT 3.1 is spoken to in that.
func (c *client) open(ctx context.Context) (*session, error) {
	s, err := c.openAs(ctx, "MQTT", 4)
	if errors.Is(err, refusal(packets.ErrRefusedBadProtocolVersion)) {
		return c.openAs(ctx, "MQIsdp", 3)
	}
	return s, err
}

func (c *client) openAs(ctx context.Context, protocol string, version byte) (*session, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	release := context.AfterFunc(ctx, func() { _ = conn.Close() })
	r := bufio.NewReader(conn)
	present, err := c.greet(conn, r, protocol, version)
	if !release() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	s := &session{conn: conn, alive: cmp.Or(c.alive, keepAlive), where: "mqtt broker at " + c.at.target, present: present, take: c.take, gone: make(chan struct{}),
		turn: make(chan struct{}, 1), waiting: map[uint16]chan []byte{}}
	s.work.Go(func() { s.read(r) })
	s.work.Go(s.ping)
	return s, nil
}

// greet exchanges the first packets.
func (c *client) greet(conn net.Conn, r *bufio.Reader, protocol string, version byte) (present bool, err error) {
	_ = conn.SetDeadline(time.Now().Add(answerPatience))
	hello := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	hello.ProtocolName, hello.ProtocolVersion = protocol, version
	hello.CleanSession, hello.Keepalive, hello.ClientIdentifier = c.clean, uint16(cmp.Or(c.alive, keepAlive)/time.Second), c.id
	if c.at.user != "" {
		hello.UsernameFlag, hello.Username = true, c.at.user
		if !c.at.password.Empty() {
			hello.PasswordFlag, hello.Password = true, []byte(c.at.password.Reveal())
		}
	}
	if err := hello.Write(conn); err != nil {
		return false, err
	}
	p, err := readPacket(r)
	if err != nil {
		return false, err
	}
	answer, ok := p.(*packets.ConnackPacket)
	switch {
	case !ok:
		return false, errPacket
	case answer.ReturnCode != packets.Accepted:
		return false, refusal(answer.ReturnCode)
	}
	return answer.SessionPresent, nil
}

// readPacket reads one packet. The library's reader would make room for whatever size is announced.
func readPacket(r *bufio.Reader) (packets.ControlPacket, error) {
	first, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	head := packets.FixedHeader{MessageType: first >> 4, Dup: first&8 != 0, Qos: first >> 1 & 3, Retain: first&1 != 0}
	for shift := 0; ; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return nil, inside(err)
		}
		head.RemainingLength |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			break
		}
		if shift == 21 {
			return nil, errPacket
		}
	}
	if head.RemainingLength > maxPacket {
		return nil, errTooLarge
	}
	p, err := packets.NewControlPacketWithHeader(head)
	if err != nil {
		return nil, errPacket
	}
	var body bytes.Buffer
	if _, err := io.CopyN(&body, r, int64(head.RemainingLength)); err != nil {
		return nil, inside(err)
	}
	if err := p.Unpack(&body); err != nil {
		return nil, errPacket
	}
	return p, nil
}

// inside is the error of a packet that breaks off.
func inside(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// read takes in what the broker sends, until the end.
func (s *session) read(r *bufio.Reader) {
	for {
		// A broker that answers pings is never silent for longer. While take holds a message, the
		// clock stands still.
		_ = s.conn.SetReadDeadline(time.Now().Add(s.alive + min(s.alive, answerPatience)))
		p, err := readPacket(r)
		if err != nil {
			s.fail(err)
			return
		}
		switch p := p.(type) {
		case *packets.PublishPacket:
			if p.Qos > 1 || p.Qos == 1 && p.MessageID == 0 || !utf8.ValidString(p.TopicName) || strings.ContainsRune(p.TopicName, 0) {
				s.fail(errPacket) // nobody subscribes to more than 1 here
				return
			}
			if s.take != nil {
				s.take(s, p)
			}
		case *packets.PubackPacket:
			s.settle(p.MessageID, nil)
		case *packets.SubackPacket:
			s.settle(p.MessageID, p.ReturnCodes)
		case *packets.PingrespPacket:
		default:
			s.fail(errPacket)
			return
		}
		select {
		case <-s.gone:
			return
		default:
		}
	}
}

func (s *session) ping() {
	t := time.NewTicker(s.alive)
	defer t.Stop()
	for {
		select {
		case <-s.gone:
			return
		case <-t.C:
			_ = s.write(packets.NewControlPacket(packets.Pingreq)) // an error ends the session
		}
	}
}

// fail ends the session. The first reason counts.
func (s *session) fail(err error) {
	s.once.Do(func() {
		var timeout net.Error
		switch {
		case errors.Is(err, io.EOF):
			err = errEOF
		case errors.As(err, &timeout) && timeout.Timeout():
			err = errSilent
		}
		s.why = err
		s.mu.Lock()
		close(s.gone)
		s.mu.Unlock()
		_ = s.conn.Close()
	})
}

// lost tells whether the session has ended.
func (s *session) lost() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

// close says goodbye, waits for the broker to hang up, and ends the session with its goroutines. Who
// closes a socket with something unread in it may take back what was written: acknowledgements.
func (s *session) close() {
	late := time.NewTimer(time.Second)
	defer late.Stop()
	_ = s.conn.SetWriteDeadline(time.Now().Add(time.Second)) // for a write that hangs, too
	select {
	case s.turn <- struct{}{}:
		if packets.NewControlPacket(packets.Disconnect).Write(s.conn) == nil {
			select {
			case <-s.gone:
			case <-late.C:
			}
		}
		<-s.turn
	case <-s.gone:
	case <-late.C:
	}
	s.fail(errClosed)
	s.work.Wait()
}

// write sends a packet. A packet cut in two ends the session.
func (s *session) write(p packets.ControlPacket) error {
	select {
	case s.turn <- struct{}{}:
	case <-s.gone:
		return s.why
	}
	defer func() { <-s.turn }()
	return s.put(p)
}

// put sends a packet; the turn is the caller's.
func (s *session) put(p packets.ControlPacket) error {
	_ = s.conn.SetWriteDeadline(time.Now().Add(answerPatience))
	if s.lost() {
		return s.why
	}
	if err := p.Write(s.conn); err != nil {
		s.fail(err)
		<-s.gone
		return s.why
	}
	return nil
}

// acknowledge tells the broker that a message was handled.
func (s *session) acknowledge(id uint16) error {
	p := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
	p.MessageID = id
	return s.write(p)
}

// settle hands the answer to a packet to who waits for it.
func (s *session) settle(id uint16, answer []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.waiting[id]; w != nil {
		delete(s.waiting, id)
		w <- answer // there is room for one
	}
}

// ask sends a packet, which build makes with its number, and waits for the answer: until ctx ends,
// and for answerPatience at most. A number whose answer never came stays taken.
func (s *session) ask(ctx context.Context, op fault.Op, build func(id uint16) packets.ControlPacket) ([]byte, error) {
	late := time.NewTimer(answerPatience)
	defer late.Stop()
	select {
	case s.turn <- struct{}{}:
	case <-s.gone:
		return nil, s.ended(op, fault.SentNever)
	case <-ctx.Done():
		return nil, over(op, s.where, ctx.Err(), fault.SentNever)
	case <-late.C:
		return nil, fault.New(op, fault.Unavailable, "%s: others still write", s.where).WithSent(fault.SentNever)
	}
	answer, err := s.post(op, build)
	if err != nil {
		<-s.turn
		return nil, err
	}
	select {
	case a := <-answer:
		return a, nil
	case <-s.gone:
		select {
		case a := <-answer: // both
			return a, nil
		default:
		}
		return nil, s.ended(op, fault.SentMaybe)
	case <-ctx.Done():
		return nil, over(op, s.where, ctx.Err(), fault.SentMaybe)
	case <-late.C:
		return nil, fault.New(op, fault.Unavailable, "%s: no answer in %v", s.where, answerPatience).WithSent(fault.SentMaybe)
	}
}

// post finds a number for a packet and writes it beside, for a write may hang; then it passes the
// turn on, unless there is an error.
func (s *session) post(op fault.Op, build func(id uint16) packets.ControlPacket) (<-chan []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost() {
		return nil, fault.New(op, fault.Unavailable, "%s", s.where).Because(s.why).WithSent(fault.SentNever)
	}
	for range 65535 {
		if s.last++; s.last == 0 {
			s.last = 1
		}
		id := s.last
		if s.waiting[id] != nil {
			continue
		}
		answer := make(chan []byte, 1)
		s.waiting[id] = answer
		s.work.Go(func() {
			defer func() { <-s.turn }()
			_ = s.put(build(id)) // an error ends the session
		})
		return answer, nil
	}
	return nil, fault.New(op, fault.Exhausted, "%s: 65535 messages wait for its answer", s.where).WithSent(fault.SentNever)
}

// publish sends a message with QoS 1 and waits until the broker has it.
func (s *session) publish(ctx context.Context, op fault.Op, topic string, retain bool, data []byte) error {
	_, err := s.ask(ctx, op, func(id uint16) packets.ControlPacket {
		p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
		p.Qos, p.Retain, p.TopicName, p.Payload, p.MessageID = 1, retain, topic, data, id
		return p
	})
	return err
}

// subscribe asks for the messages of a topic, with QoS 1.
func (s *session) subscribe(ctx context.Context, op fault.Op, topic string) error {
	answer, err := s.ask(ctx, op, func(id uint16) packets.ControlPacket {
		p := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
		p.Topics, p.Qoss, p.MessageID = []string{topic}, []byte{1}, id
		return p
	})
	if err == nil && (len(answer) != 1 || answer[0] > 2) {
		return fault.New(op, fault.Denied, "%s refuses the subscription to topic %q; may the user read it?", s.where, topic).WithSent(fault.SentNever)
	}
	return err
}

// ended is the error of a call on a session that has ended.
func (s *session) ended(op fault.Op, sent fault.Sent) error {
	<-s.gone
	return fault.New(op, fault.Unavailable, "%s", s.where).Because(s.why).WithSent(sent)
}
