package pubsub

import (
	"context"
	"errors"
	"testing"
)

// gate counts who is inside; it refuses with err, if set.
type gate struct {
	inside int
	err    error
}

func (g *gate) Enter(context.Context) (func(), error) {
	if g.err != nil {
		return nil, g.err
	}
	g.inside++
	return func() { g.inside-- }, nil
}

// watched is a sink that notes how many were inside the gate while it worked.
type watched struct {
	g    *gate
	saw  []int
	fail error
}

func (w *watched) Deliver(context.Context, *Event) (Answer, error) {
	w.saw = append(w.saw, w.g.inside)
	return Drop, w.fail
}

func (w *watched) DeliverBulk(context.Context, *Batch) ([]Answer, error) {
	w.saw = append(w.saw, w.g.inside)
	return []Answer{Drop}, w.fail
}

// TestAdmitted: each delivery holds a slot while the app works, gives it back whatever the app
// says, and does not reach an app that the gate keeps closed.
func TestAdmitted(t *testing.T) {
	for _, fail := range []error{nil, errors.New("app failed")} {
		g := &gate{}
		w := &watched{g: g, fail: fail}
		s := Admitted(g, w)
		if a, err := s.Deliver(t.Context(), &Event{}); a != Drop || !errors.Is(err, fail) {
			t.Fatalf("Deliver says %v, %v", a, err)
		}
		if a, err := s.DeliverBulk(t.Context(), &Batch{}); len(a) != 1 || !errors.Is(err, fail) {
			t.Fatalf("DeliverBulk says %v, %v", a, err)
		}
		if len(w.saw) != 2 || w.saw[0] != 1 || w.saw[1] != 1 {
			t.Errorf("slots held during deliveries: %v, want one each", w.saw)
		}
		if g.inside != 0 {
			t.Errorf("%d slots kept after deliveries", g.inside)
		}
	}

	closed := errors.New("app is not in a healthy state")
	g := &gate{err: closed}
	w := &watched{g: g}
	s := Admitted(g, w)
	if a, err := s.Deliver(t.Context(), &Event{}); a != Retry || !errors.Is(err, closed) {
		t.Errorf("a closed gate: Deliver says %v, %v", a, err)
	}
	if _, err := s.DeliverBulk(t.Context(), &Batch{}); !errors.Is(err, closed) {
		t.Errorf("a closed gate: DeliverBulk says %v", err)
	}
	if len(w.saw) != 0 {
		t.Error("an event went past a closed gate")
	}

	if Admitted(g, nil) != nil {
		t.Error("no sink became one")
	}
}
