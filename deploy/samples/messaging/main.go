// Command messaging processes orders with the Go SDK of Mecha. Events of an order come one after the
// other, those of different orders at once; two workers share the partitions, and one of them leaves in
// the middle. It ends by telling what happened.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	mecha "github.com/mecha-project/mecha/sdk/go"
)

// steps of each order, in the only order that makes sense.
var steps = []string{"placed", "paid", "packed", "shipped"}

// unlucky is the order whose payment nobody can take until somebody looks into it.
const (
	orders  = 200
	unlucky = "order-13"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	client, err := mecha.Dial() // the sidecar beside this process
	if err != nil {
		return err
	}
	defer client.Close()
	// A topic of its own for each run, so that every run tells the same story.
	topic := mecha.Topic{PubSub: "pubsub", Name: fmt.Sprintf("orders-%d", time.Now().UnixMilli())}
	p := &processor{client: client, state: mechav1.NewStateClient(client.Conn()), topic: topic, handled: map[string]int{}, has: map[string]int{}, last: map[string]string{}}

	var workers sync.WaitGroup
	left, leave := context.WithCancel(ctx)
	defer leave()
	workers.Go(func() { p.work(left, "left") })
	workers.Go(func() { p.work(ctx, "right") })
	both := func() bool { return p.has["left"] > 0 && p.has["right"] > 0 }
	if err := p.await(ctx, "both workers to have partitions", both); err != nil {
		return err
	}

	if err := p.publish(ctx, 0, orders/2); err != nil {
		return err
	}
	busy := func() bool { return p.handled["left"] >= 50 }
	if err := p.await(ctx, "the left worker to be busy", busy); err != nil {
		return err
	}
	leave() // it ends what it has in hand, acknowledges, and gives its partitions to the other
	if err := p.publish(ctx, orders/2, orders); err != nil {
		return err
	}
	rest := func() bool { return p.total >= orders*len(steps)-len(steps[1:]) }
	if err := p.await(ctx, "all events but those that are set aside", rest); err != nil {
		return err
	}
	if err := p.unpark(ctx); err != nil {
		return err
	}
	if err := p.await(ctx, "all events", func() bool { return p.total >= orders*len(steps) }); err != nil {
		return err
	}
	cancel()
	workers.Wait()
	return p.report()
}

// processor is what both workers know.
type processor struct {
	client *mecha.Client
	state  mechav1.StateClient
	topic  mecha.Topic

	mu          sync.Mutex
	handled     map[string]int    // guarded by mu: events, by worker
	last        map[string]string // guarded by mu: the step of each order
	total       int               // guarded by mu
	atOnce      int               // guarded by mu: handlers that run
	most        int               // guarded by mu
	outOfOrder  int               // guarded by mu
	repeated    int               // guarded by mu
	bankIsFixed bool              // guarded by mu
	has         map[string]int    // guarded by mu: partitions, by worker
	moved       []string          // guarded by mu
}

// publish tells of orders first to last, each event with its order as the key. Many are under way at once.
func (p *processor) publish(ctx context.Context, first, last int) error {
	pub, err := p.client.NewPublisher(p.topic, mecha.PublisherOptions{})
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var failed error
	for _, step := range steps {
		for i := first; i < last; i++ {
			pub.PublishAsync(ctx, mecha.Entry{Key: fmt.Sprintf("order-%d", i), Value: []byte(step)}, func(_ mecha.Receipt, err error) {
				mu.Lock()
				defer mu.Unlock()
				failed = errors.Join(failed, err)
			})
		}
	}
	if err := pub.Close(ctx); err != nil { // waits for all receipts
		return err
	}
	return failed
}

// work consumes until ctx ends.
func (p *processor) work(ctx context.Context, name string) {
	err := p.client.Consume(ctx, mecha.ConsumeOptions{PubSub: p.topic.PubSub, Topics: []string{p.topic.Name}, Instance: name,
		OnFrame: func(f *mechav1.BrokerFrame) { p.watch(name, f) }},
		func(ctx context.Context, m *mecha.Message) error { return p.handle(ctx, name, m) })
	if err != nil {
		log.Printf("worker %s: %v", name, err)
	}
}

// unpark repairs what is wrong, and has events that were set aside handled.
func (p *processor) unpark(ctx context.Context) error {
	for found := false; !found; time.Sleep(10 * time.Millisecond) {
		for k, err := range p.client.Parked(ctx, p.topic, "") {
			if err != nil {
				return err
			}
			found = true
			fmt.Printf("%s is set aside: %s\n", k.GetKey(), k.GetReason())
			p.repair()
			if _, err := p.client.Unpark(ctx, p.topic, "", k.GetPartition(), k.GetKey()); err != nil {
				return err
			}
		}
	}
	return nil
}

// watch notes which partitions come and go. A worker need not care, but may.
func (p *processor) watch(name string, f *mechav1.BrokerFrame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch f := f.GetFrame().(type) {
	case *mechav1.BrokerFrame_Assigned:
		p.has[name] += len(f.Assigned.GetPartitions())
	case *mechav1.BrokerFrame_Revoking:
		p.moved = append(p.moved, fmt.Sprintf("%s gives back %d of %d partitions: %s", name, len(f.Revoking.GetPartitions()), p.has[name], f.Revoking.GetReason()))
		p.has[name] -= len(f.Revoking.GetPartitions())
	}
}

// handle takes an order one step further.
func (p *processor) handle(ctx context.Context, worker string, m *mecha.Message) error {
	step := string(m.Value)
	if step == "paid" && m.Key == unlucky && !p.fixed() {
		return mecha.Park(errors.New("the bank does not know the customer"))
	}
	if step == "paid" && strings.HasSuffix(m.Key, "7") && m.Attempt == 1 {
		return mecha.RetryAfter(50*time.Millisecond, nil) // only this order waits
	}
	p.enter()
	defer p.exit()
	time.Sleep(2 * time.Millisecond) // the work

	// The write takes effect only as long as nobody who had the partition later has written: a worker that
	// was taken for dead cannot undo what its successor did.
	_, err := p.state.Write(ctx, &mechav1.WriteRequest{StoreName: "statestore", IfEpoch: m.IfEpoch(),
		Operations: []*mechav1.StateOperation{{Operation: &mechav1.StateOperation_Set{Set: &mechav1.SetState{Key: m.Topic + "/" + m.Key, Value: m.Value}}}}})
	if err != nil {
		return err
	}
	p.note(worker, m.Key, step)
	return nil
}

func (p *processor) enter() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.atOnce++
	p.most = max(p.most, p.atOnce)
}

func (p *processor) exit() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.atOnce--
}

// note checks that the step is the one that follows.
func (p *processor) note(worker, order, step string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch was := index(p.last[order]); {
	case index(step) == was+1:
		p.last[order] = step
		p.handled[worker]++
		p.total++
	case index(step) <= was: // delivered again, which can happen after a crash
		p.repeated++
	default:
		p.outOfOrder++
	}
}

func index(step string) int {
	for i, s := range steps {
		if s == step {
			return i
		}
	}
	return -1
}

func (p *processor) fixed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bankIsFixed
}

func (p *processor) repair() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bankIsFixed = true
}

// await waits until something is so.
func (p *processor) await(ctx context.Context, what string, is func() bool) error {
	for ctx.Err() == nil {
		p.mu.Lock()
		ok := is()
		p.mu.Unlock()
		if ok {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
}

func (p *processor) report() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.moved {
		fmt.Println(m)
	}
	fmt.Printf("%d events of %d orders: left handled %d, right %d, up to %d at once\n", p.total, len(p.last), p.handled["left"], p.handled["right"], p.most)
	fmt.Printf("out of order: %d, repeated: %d\n", p.outOfOrder, p.repeated)
	if p.outOfOrder > 0 {
		return errors.New("the order of a key was not kept")
	}
	return nil
}
