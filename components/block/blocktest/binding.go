package blocktest

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Bindings share little: what an operation does is the product's own, and is tested there. The
// suites here hold what the sidecar counts on.

// OutputPlace is an output binding to check.
type OutputPlace struct {
	// Open makes a component, each time another one. The suite closes it.
	Open func() block.Output
	// Works is an operation that succeeds, however often it is done.
	Works block.BindingRequest
}

// Output checks an output binding.
func Output(t *testing.T, place func(t *testing.T) OutputPlace) {
	t.Helper()
	suite(t, block.KindBinding)
	groups := []struct {
		name string
		run  func(*outputTest)
	}{
		{"operations", outputOperations},
		{"an unknown operation", outputUnknown},
		{"slices and maps belong to their owners", outputOwnership},
		{"calls at once", outputConcurrent},
		{"an ended context", outputContext},
		{"close", outputClose},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			o := &outputTest{T: t, OutputPlace: place(t)}
			o.binding = o.Open()
			t.Cleanup(func() { closeQuietly(t, o.binding) })
			g.run(o)
		})
	}
}

type outputTest struct {
	*testing.T
	OutputPlace
	binding block.Output
}

// works is the request that succeeds, in memory of its own.
func (o *outputTest) works() block.BindingRequest {
	r := block.BindingRequest{Operation: o.Works.Operation, Data: bytes.Clone(o.Works.Data)}
	if o.Works.Metadata != nil {
		r.Metadata = make(map[string]string, len(o.Works.Metadata))
		for k, v := range o.Works.Metadata {
			r.Metadata[k] = v
		}
	}
	return r
}

func outputOperations(o *outputTest) {
	ops := o.binding.Operations()
	if len(ops) == 0 || !slices.Contains(ops, o.Works.Operation) {
		o.Fatalf("operations %q, want some and %q among them", ops, o.Works.Operation)
	}
	for i, op := range ops {
		if op == "" || strings.TrimSpace(op) != op || slices.Contains(ops[:i], op) {
			o.Errorf("operation %q is empty, padded or listed twice", op)
		}
	}
	ops[0] = "changed"
	if slices.Contains(o.binding.Operations(), "changed") {
		o.Error("the list of operations is shared with its callers")
	}
	if _, err := o.binding.Invoke(patiently(o.T), o.works()); err != nil {
		o.Errorf("Invoke(%s): %v", o.Works.Operation, err)
	}
}

func outputUnknown(o *outputTest) {
	for _, op := range []string{"", "no-such-operation", strings.ToUpper(o.Works.Operation)} {
		r := o.works()
		r.Operation = op
		_, err := o.binding.Invoke(patiently(o.T), r)
		wantCode(o, "operation "+show(op), err, fault.Unsupported)
	}
}

func outputOwnership(o *outputTest) {
	r := o.works()
	first, err := o.binding.Invoke(patiently(o.T), r)
	if err != nil {
		o.Fatalf("Invoke: %v", err)
	}
	if want := o.works(); !bytes.Equal(r.Data, want.Data) || len(r.Metadata) != len(want.Metadata) {
		o.Errorf("Invoke changed its request: %q %v", r.Data, r.Metadata)
	}
	for i := range r.Data {
		r.Data[i] = '!'
	}
	if first == nil {
		return
	}
	kept := bytes.Clone(first.Data)
	second, err := o.binding.Invoke(patiently(o.T), o.works())
	if err != nil {
		o.Fatalf("Invoke: %v", err)
	}
	for i := range second.Data {
		second.Data[i] = '?'
	}
	if !bytes.Equal(first.Data, kept) {
		o.Error("two answers share their data")
	}
}

func outputConcurrent(o *outputTest) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				if _, err := o.binding.Invoke(patiently(o.T), o.works()); err != nil {
					o.Errorf("Invoke: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func outputContext(o *outputTest) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	start := time.Now()
	_, err := o.binding.Invoke(ended, o.works())
	wantCode(o, "Invoke with an ended context", err, fault.Canceled)
	if took := time.Since(start); took > 2*time.Second {
		o.Errorf("Invoke with an ended context took %v", took)
	}
	if _, err := o.binding.Invoke(patiently(o.T), o.works()); err != nil {
		o.Errorf("Invoke afterwards: %v", err)
	}
}

func outputClose(o *outputTest) {
	if err := o.binding.Ping(patiently(o.T)); err != nil {
		o.Errorf("Ping: %v", err)
	}
	for i := range 2 {
		if err := o.binding.Close(patiently(o.T)); err != nil {
			o.Errorf("Close number %d: %v", i+1, err)
		}
	}
	_, err := o.binding.Invoke(patiently(o.T), o.works())
	wantCode(o, "Invoke after Close", err, fault.Unavailable)
	wantCode(o, "Ping after Close", o.binding.Ping(patiently(o.T)), fault.Unavailable)
	unused := o.Open()
	if err := unused.Close(patiently(o.T)); err != nil {
		o.Errorf("Close without use: %v", err)
	}
}

// InputPlace is an input binding to check.
type InputPlace struct {
	// Open makes a component, each time another one. The suite closes it.
	Open func() block.Input
	// Cause makes at least one event come to whoever reads.
	Cause func()
}

// Input checks an input binding.
func Input(t *testing.T, place func(t *testing.T) InputPlace) {
	t.Helper()
	suite(t, block.KindBinding)
	groups := []struct {
		name string
		run  func(*inputTest)
	}{
		{"events come, and go on coming after a failure", inputEvents},
		{"reading ends with its context", inputEnds},
		{"reading ends behind its deliveries", inputSettles},
		{"close", inputClose},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			i := &inputTest{T: t, InputPlace: place(t)}
			i.binding = i.Open()
			t.Cleanup(func() { closeQuietly(t, i.binding) })
			g.run(i)
		})
	}
}

type inputTest struct {
	*testing.T
	InputPlace
	binding block.Input
}

// read runs Read until stop is called, which gives its error.
func (i *inputTest) read(deliver func(context.Context, block.BindingEvent) ([]byte, error)) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- i.binding.Read(ctx, deliver) }()
	return func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			i.Fatal("Read does not end with its context")
			return nil
		}
	}
}

// event waits for one.
func (i *inputTest) event(events <-chan block.BindingEvent) {
	i.Helper()
	i.Cause()
	select {
	case <-events:
	case <-time.After(patience):
		i.Fatal("no event came")
	}
}

func inputEvents(i *inputTest) {
	events := make(chan block.BindingEvent, 100)
	var once sync.Once
	deliver := func(_ context.Context, e block.BindingEvent) (answer []byte, err error) {
		once.Do(func() { err = fault.New("app", fault.Unavailable, "the app has failed") })
		select {
		case events <- e:
		default:
		}
		return []byte("answer"), err
	}
	stop := i.read(deliver)
	i.event(events)
	i.event(events)
	wantCode(i, "Read", stop(), fault.Canceled)
	stop = i.read(deliver) // it may be read again
	i.event(events)
	wantCode(i, "Read again", stop(), fault.Canceled)
}

func inputEnds(i *inputTest) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	err := i.binding.Read(ended, func(context.Context, block.BindingEvent) ([]byte, error) {
		i.Error("an event came to a reader that had ended")
		return nil, nil
	})
	wantCode(i, "Read with an ended context", err, fault.Canceled)
	begun := make(chan block.BindingEvent, 100)
	stop := i.read(func(ctx context.Context, e block.BindingEvent) ([]byte, error) {
		begun <- e
		<-ctx.Done() // it is told of the end too
		return nil, ctx.Err()
	})
	i.event(begun)
	wantCode(i, "Read", stop(), fault.Canceled)
}

func inputSettles(i *inputTest) {
	var mu sync.Mutex
	inside := 0
	begun, release := make(chan block.BindingEvent, 100), make(chan struct{})
	stop := i.read(func(_ context.Context, e block.BindingEvent) ([]byte, error) {
		mu.Lock()
		inside++
		mu.Unlock()
		begun <- e
		<-release
		mu.Lock()
		inside--
		mu.Unlock()
		return nil, nil
	})
	i.event(begun)
	time.AfterFunc(50*time.Millisecond, func() { close(release) })
	wantCode(i, "Read", stop(), fault.Canceled)
	mu.Lock()
	defer mu.Unlock()
	if inside != 0 {
		i.Errorf("Read returned while %d events were being delivered", inside)
	}
}

func inputClose(i *inputTest) {
	for n := range 2 {
		if err := i.binding.Close(patiently(i.T)); err != nil {
			i.Errorf("Close number %d: %v", n+1, err)
		}
	}
	err := i.binding.Read(patiently(i.T), func(context.Context, block.BindingEvent) ([]byte, error) { return nil, nil })
	wantCode(i, "Read after Close", err, fault.Unavailable)
	wantCode(i, "Ping after Close", i.binding.Ping(patiently(i.T)), fault.Unavailable)
}
