package fault_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

const op fault.Op = "test.op"

// Codes travel between sidecars of different versions and are metric labels: this table only
// grows.
func TestCodesAreStable(t *testing.T) {
	want := []string{"ok", "internal", "invalid", "not_found", "exists", "conflict", "denied", "unauthenticated", "exhausted",
		"too_large", "unsupported", "unavailable", "deadline", "canceled", "not_ready", "bad_etag", "lost", "code_17"}
	for i, w := range want {
		if got := fault.Code(i).String(); got != w {
			t.Errorf("code %d is %q, want %q", i, got, w)
		}
	}
	numbers := map[fault.Code]int{fault.OK: 0, fault.Internal: 1, fault.Unavailable: 11, fault.NotReady: 14, fault.Lost: 16}
	for c, n := range numbers {
		if int(c) != n {
			t.Errorf("%v has number %d, want %d", c, c, n)
		}
	}
	if fault.SentUnknown != 0 || fault.SentNever != 1 || fault.SentMaybe != 2 {
		t.Error("the numbers of Sent changed; they are on the wire")
	}
}

func TestOf(t *testing.T) {
	inner := fault.New(op, fault.NotFound, "inner")
	tests := []struct {
		name string
		err  error
		want fault.Code
	}{
		{"no error", nil, fault.OK},
		{"a stranger", errors.New("x"), fault.Internal},
		{"a fault", inner, fault.NotFound},
		{"a fault inside a stranger", fmt.Errorf("around: %w", inner), fault.NotFound},
		{"the outermost fault wins", fault.New(op, fault.Denied, "outer").Because(inner), fault.Denied},
		{"one of several", errors.Join(errors.New("x"), inner), fault.NotFound},
		{"a deadline", context.DeadlineExceeded, fault.Deadline},
		{"a cancelled context in a stranger", fmt.Errorf("x: %w", context.Canceled), fault.Canceled},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := fault.Of(tt.err); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestWrap(t *testing.T) {
	if err := fault.Wrap(op, fault.Lost, nil); err != nil {
		t.Errorf("wrapping nil gives %v", err)
	}
	cause := errors.New("refused")
	err := fault.Wrap(op, fault.Unavailable, cause)
	if fault.Of(err) != fault.Unavailable || !errors.Is(err, cause) || err.Error() != "refused" {
		t.Errorf("got %v (%v)", err, fault.Of(err))
	}
	for _, ctx := range []struct {
		err  error
		want fault.Code
	}{{context.Canceled, fault.Canceled}, {fmt.Errorf("read: %w", context.DeadlineExceeded), fault.Deadline}} {
		if got := fault.Of(fault.Wrap(op, fault.Internal, ctx.err)); got != ctx.want {
			t.Errorf("%v became %v, want %v: a context error keeps its meaning", ctx.err, got, ctx.want)
		}
	}
}

func TestWrapKeepsWhatItKnows(t *testing.T) {
	inner := fault.New(op, fault.Unavailable, "inner").With(fault.NoApp).WithSent(fault.SentNever)
	inner.After = 3 * time.Second
	err := fault.Wrap("outer", fault.Internal, fmt.Errorf("between: %w", inner))
	var e *fault.Error
	if !errors.As(err, &e) || e.Op != "outer" {
		t.Fatalf("got %#v", err)
	}
	if e.Reason != fault.NoApp || e.Sent != fault.SentNever || e.After != 3*time.Second {
		t.Errorf("reason %q, sent %v, after %v: the cause's are lost", e.Reason, e.Sent, e.After)
	}
}

func TestReasonAndReachAreFoundAnywhere(t *testing.T) {
	inner := fault.New(op, fault.NotReady, "inner").With(fault.NoApp).WithSent(fault.SentMaybe)
	tests := []struct {
		name   string
		err    error
		reason fault.Reason
		sent   fault.Sent
	}{
		{"nil", nil, "", fault.SentUnknown},
		{"a stranger", errors.New("x"), "", fault.SentUnknown},
		{"its own", inner, fault.NoApp, fault.SentMaybe},
		{"of the cause", fault.New(op, fault.Internal, "outer").Because(fmt.Errorf("between: %w", inner)), fault.NoApp, fault.SentMaybe},
		{"the outermost one that has any", fault.New(op, fault.Internal, "outer").With(fault.NoTarget).WithSent(fault.SentNever).Because(inner), fault.NoTarget, fault.SentNever},
		{"each by itself", fault.New(op, fault.Internal, "outer").WithSent(fault.SentNever).Because(inner), fault.NoApp, fault.SentNever},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := fault.ReasonOf(tt.err); got != tt.reason {
				t.Errorf("reason %q, want %q", got, tt.reason)
			}
			if got := fault.SentOf(tt.err); got != tt.sent {
				t.Errorf("sent %v, want %v", got, tt.sent)
			}
		})
	}
}

func TestText(t *testing.T) {
	cause := errors.New("refused")
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"words", fault.New(op, fault.NotFound, "key %q", "a"), `key "a"`},
		{"words and a cause", fault.New(op, fault.Unavailable, "dial x").Because(cause), "dial x: refused"},
		{"a cause only", fault.Wrap(op, fault.Unavailable, cause), "refused"},
		{"nothing", &fault.Error{Code: fault.Lost}, "lost"},
		{"a percent sign in data", fault.New(op, fault.Invalid, "%s", "100%d"), "100%d"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.err.Error(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
