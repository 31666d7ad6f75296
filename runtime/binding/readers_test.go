package binding_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/app"
	"github.com/mecha-project/mecha/runtime/binding"
)

// begun is the read in progress; nil when there is none.
func begun(i *input) *read {
	synctest.Wait()
	select {
	case r := <-i.reads:
		return r
	default:
		return nil
	}
}

// 2xx and 405 say yes, everything else no, and no answer is asked for again.
func TestQuestion(t *testing.T) {
	for status, want := range map[int]bool{200: true, 204: true, 299: true, 405: true, 301: false, 400: false, 404: false, 500: false} {
		synctest.Test(t, func(t *testing.T) {
			k := newKit(t)
			k.app.set(func(string) (int, string) { return status, "body" })
			in := newInput()
			k.put("in", in)
			if k.Resume(); (begun(in) != nil) != want {
				t.Errorf("%d: read should be %v", status, want)
			}
			if d := cmp.Diff([]string{"OPTIONS in application/json"}, k.app.all()); d != "" {
				t.Errorf("%d (-want +got):\n%s", status, d)
			}
			if n := k.log.count("level=INFO msg=\"app has not subscribed to binding in.\""); (n == 0) != want {
				t.Errorf("%d: said %d times that it is not wanted", status, n)
			}
		})
	}
}

func TestWhatIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.app.set(func(what string) (int, string) {
			if what == "OPTIONS some/path" || what == "OPTIONS both" {
				return 200, ""
			}
			return 404, ""
		})
		all := map[string]*input{}
		add := func(name string, raw ...string) { all[name] = newInput(); k.put(name, all[name], raw...) }
		add("routed", "route", "/some%2Fpath?x=1")
		add("unwanted")
		add("told", "direction", "output, Input")
		add("closed", "direction", "output")
		two := both{&output{}, newInput()}
		k.put("both", two)
		all["both"] = two.input
		k.put("out", &output{})
		synctest.Wait()
		for name, in := range all {
			if begun(in) != nil {
				t.Errorf("%s is read before the app was found", name)
			}
		}
		k.Resume()
		k.Resume()
		for name, want := range map[string]bool{"routed": true, "unwanted": false, "told": true, "closed": false, "both": true} {
			if r := begun(all[name]); (r != nil) != want || begun(all[name]) != nil {
				t.Errorf("%s: read once should be %v", name, want)
			}
		}
		got := k.app.all()
		slices.Sort(got)
		if d := cmp.Diff([]string{"OPTIONS both application/json", "OPTIONS some/path?x=1 application/json", "OPTIONS unwanted application/json"}, got); d != "" {
			t.Errorf("asked (-want +got):\n%s", d)
		}
	})
}

// An app that cannot be asked is asked again.
func TestQuestionUntilAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		in := newInput()
		k.put("in", in)
		k.app.set(func(string) (int, string) { return 0, "" })
		k.app.hang = func(ctx context.Context, _ string) {
			if len(k.app.all()) == 2 { // the second is not answered
				<-ctx.Done()
			}
		}
		k.Resume()
		time.Sleep(8 * time.Second)
		if n := len(k.app.all()); begun(in) != nil || n < 3 {
			t.Errorf("%d questions", n)
		}
		if k.log.count("could not be asked") == 0 {
			t.Error("that is not told")
		}
		k.app.set(nil)
		time.Sleep(time.Minute)
		if begun(in) == nil {
			t.Error("the binding is not read although the app takes it")
		}
	})
}

func TestWithoutAnApp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, a := range map[string]*app.App{"nil": nil, "no port": app.New(nil, app.Options{})} {
			k := newKit(t, func(o *binding.Options) { o.App = a })
			in := newInput()
			k.put("in", in, "direction", "input")
			if k.Resume(); begun(in) != nil {
				t.Errorf("%s: read without an app", name)
			}
		}
	})
}

// A reader that cannot go on is begun again, later each time.
func TestReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		in := newInput()
		k.put("in", in)
		k.Resume()
		r := begun(in)
		for range 10 {
			r.fail <- errors.New("the broker is gone")
			<-r.ended
			time.Sleep(37 * time.Second)
			if r = begun(in); r == nil {
				t.Fatal("not read again")
			}
		}
		if n := k.log.count("level=WARN msg=\"reading from an input binding failed"); n != 10 {
			t.Errorf("told %d times", n)
		}
		if n := len(k.app.all()); n != 1 {
			t.Errorf("the app was asked %d times", n)
		}
	})
}

// While the app is unhealthy nothing is read; afterwards it is asked again.
func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		in := newInput()
		k.put("in", in)
		k.app.set(func(string) (int, string) { return 404, "" })
		k.Resume()
		if begun(in) != nil {
			t.Fatal("not wanted and read")
		}
		k.Pause()
		k.app.set(nil)
		k.Resume()
		r := begun(in)
		if r == nil {
			t.Fatal("wanted and not read")
		}
		k.Pause()
		k.Pause()
		<-r.ended
		k.Refresh("in")
		time.Sleep(time.Hour)
		if begun(in) != nil {
			t.Fatal("read while the app is unhealthy")
		}
		k.Resume()
		if begun(in) == nil {
			t.Fatal("not read after recovery")
		}
	})
}

// An event at the app outlives a pause for a while, and holds the next reader up as long.
func TestPauseSettles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		in := newInput()
		k.put("in", in, "direction", "input")
		k.app.hang = func(ctx context.Context, _ string) {
			select {
			case <-ctx.Done():
			case <-time.After(30 * time.Second):
			}
		}
		k.Resume()
		r := begun(in)
		done := make(chan error, 1)
		go func() { _, err := r.deliver(block.BindingEvent{}); done <- err }()
		synctest.Wait()
		k.Pause()
		k.Resume()
		if begun(in) != nil {
			t.Error("read beside the last reader, which still has an event at the app")
		}
		time.Sleep(31 * time.Second)
		if err := <-done; err != nil {
			t.Errorf("an event that took its time: %v", err)
		}
		if r = begun(in); r == nil {
			t.Fatal("not read again")
		}
		k.app.hang = func(ctx context.Context, _ string) { <-ctx.Done() }
		go func() { _, err := r.deliver(block.BindingEvent{}); done <- err }()
		synctest.Wait()
		k.Pause()
		time.Sleep(59 * time.Second)
		select {
		case err := <-done:
			t.Fatalf("cut short: %v", err)
		default:
		}
		time.Sleep(2 * time.Second)
		if err := <-done; fault.Of(err) != fault.Canceled {
			t.Errorf("an event that hangs: %v", err)
		}
	})
}

// A component that was replaced is read, and one that was removed is not.
func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		old, fresh := newInput(), newInput()
		k.put("in", old)
		k.Resume()
		r := begun(old)
		k.put("in", fresh, "route", "other")
		k.Refresh("in")
		<-r.ended
		if r = begun(fresh); r == nil || begun(old) != nil {
			t.Fatal("the new component is not the one that is read")
		}
		late := newInput()
		k.put("late", late)
		k.Refresh("late")
		if begun(late) == nil {
			t.Error("a component that came later is not read")
		}
		k.stores.Remove("in")
		k.Refresh("in")
		<-r.ended
		if d := cmp.Diff([]string{"OPTIONS in application/json", "OPTIONS other application/json", "OPTIONS late application/json"}, k.app.all()); d != "" {
			t.Errorf("asked (-want +got):\n%s", d)
		}
		k.Refresh("never")
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		in := newInput()
		k.put("in", in, "direction", "input")
		k.app.hang = func(ctx context.Context, _ string) {
			select {
			case <-ctx.Done():
			case <-time.After(90 * time.Second): // longer than a pause would wait
			}
		}
		k.Resume()
		r := begun(in)
		done := make(chan error, 1)
		go func() { _, err := r.deliver(block.BindingEvent{}); done <- err }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if err := k.Drain(ctx); err != nil {
			t.Errorf("Drain: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("an event that took its time: %v", err)
		}
		k.Resume()
		k.Refresh("in")
		if begun(in) != nil {
			t.Error("read after the end")
		}
		if err := k.Drain(ctx); err != nil {
			t.Errorf("Drain again: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		in := newInput()
		k.put("in", in, "direction", "input")
		k.app.hang = func(ctx context.Context, _ string) { <-ctx.Done() }
		k.Resume()
		r := begun(in)
		done := make(chan error, 1)
		go func() { _, err := r.deliver(block.BindingEvent{}); done <- err }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := k.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Drain with an app that hangs: %v", err)
		}
		if err := <-done; fault.Of(err) != fault.Canceled {
			t.Errorf("an event that hangs: %v", err)
		}
		if n := k.log.count("did not handle"); n != 0 {
			t.Errorf("what was cut short at the end is told %d times", n)
		}
	})
}
