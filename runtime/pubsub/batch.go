package pubsub

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// batcher gathers messages until there are size of them or the oldest has waited long enough.
// Batches are handled one at a time, in the order the messages came, so messages of one key
// never pass each other; meanwhile the next batch fills.
type batcher struct {
	size   int
	await  time.Duration
	handle func([]received)

	mu     sync.Mutex
	buffer []received    // guarded by mu
	more   chan struct{} // holds one token after buffer grew
	quit   chan struct{}
	once   sync.Once
	done   sync.WaitGroup
}

func newBatcher(sub *Subscription, handle func([]received)) *batcher {
	b := &batcher{handle: handle, more: make(chan struct{}, 1), quit: make(chan struct{})}
	b.size, b.await = sub.bulk()
	b.done.Go(b.loop)
	return b
}

func (b *batcher) add(d received) {
	b.mu.Lock()
	b.buffer = append(b.buffer, d)
	b.mu.Unlock()
	select {
	case b.more <- struct{}{}:
	default:
	}
}

func (b *batcher) loop() {
	for {
		if b.waiting() == 0 {
			select {
			case <-b.more:
				continue
			case <-b.quit:
				return
			}
		}
		if !b.fill() {
			return
		}
		b.handle(b.take())
	}
}

// fill waits until the batch is full or old enough; false means to stop.
func (b *batcher) fill() bool {
	late := time.NewTimer(b.await)
	defer late.Stop()
	for {
		select {
		case <-b.quit:
			return false
		default:
		}
		if b.waiting() >= b.size {
			return true
		}
		select {
		case <-b.more:
		case <-late.C:
			return true
		case <-b.quit:
			return false
		}
	}
}

func (b *batcher) waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.buffer)
}

func (b *batcher) take() []received {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(b.size, len(b.buffer))
	batch := b.buffer[:n:n]
	b.buffer = append([]received(nil), b.buffer[n:]...)
	return batch
}

// stop ends the loop when the batch in progress is done. Messages not begun are given back or stay unanswered.
func (b *batcher) stop() {
	b.once.Do(func() { close(b.quit) })
	b.done.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	leaveAll(b.buffer)
}

// item is one message of a batch on its way.
type item struct {
	job
	a       *arrival
	event   *Event // decoded for a sink; nil for HTTP and raw
	entryID string
}

// handleBatch sees a batch through: messages that need no app are settled at once, the others
// go out in one call per route.
func (c *consumer) handleBatch(ctx context.Context, ds []received) {
	if c.closing() {
		return // not begun: unanswered
	}
	var paths []string
	groups := map[string][]*item{}
	for i := range ds {
		it := &item{job: job{received: ds[i]}, entryID: newID()}
		path, ok := c.admit(ctx, it)
		if !ok {
			continue
		}
		if groups[path] == nil {
			paths = append(paths, path)
		}
		groups[path] = append(groups[path], it)
	}
	for _, path := range paths {
		c.deliverBatch(ctx, path, groups[path])
	}
}

// admit reads and routes a message; ok is false when it is settled already.
func (c *consumer) admit(ctx context.Context, it *item) (path string, ok bool) {
	var err error
	if it.a, err = read(&c.route.sub, it.Delivery); err != nil {
		c.failed(ctx, &it.job, err)
		return "", false
	}
	if it.a.expired(time.Now()) {
		c.discard(ctx, &it.job, "expired")
		return "", false
	}
	path, ok, err = c.route.path(it.a.event)
	switch {
	case err != nil:
		c.failed(ctx, &it.job, err)
		return "", false
	case !ok:
		c.discard(ctx, &it.job, "no route")
		return "", false
	}
	if c.sink != nil && !c.route.sub.raw() {
		// Here and not in the batch, where one bad event would fail all the others.
		if it.event, err = it.a.decoded(&c.route.sub, path, 0); err != nil {
			c.failed(ctx, &it.job, err)
			return "", false
		}
	}
	return path, true
}

// deliverBatch delivers items to one route as one call and settles every one of them. An
// attempt after the first sends only those that are to be retried.
func (c *consumer) deliverBatch(ctx context.Context, path string, pending []*item) {
	topic := c.route.sub.Topic
	desc := call.Desc{Op: "bulkDeliver", Resource: topic, Safety: call.Idempotent}
	_, err := call.Do(ctx, c.inbound, desc, func(ctx context.Context) (struct{}, error) {
		start := time.Now()
		end := c.s.traceBatch(ctx, topic, pending)
		answers, err := c.onceBatch(ctx, path, pending)
		end(answers, err)
		if rec := c.s.opts.Recorder; rec != nil {
			rec.PubSubBulkIngress(topic, time.Since(start))
		}
		var left []*item
		for i, it := range pending {
			it.tries++
			answer := Retry
			if err == nil && i < len(answers) {
				answer = answers[i]
			}
			c.countBatched(answer)
			switch answer {
			case Success:
				it.ack()
			case Drop:
				c.discard(ctx, &it.job, "dropped by the app")
			default:
				left = append(left, it)
			}
		}
		pending = left
		if err == nil && len(left) > 0 {
			err = fault.New("pubsub.deliver", fault.Unavailable, "the app asked to send %d events of topic %s again", len(left), topic)
		}
		return struct{}{}, err
	})
	for _, it := range pending {
		c.failed(ctx, &it.job, err)
	}
}

func (c *consumer) countBatched(a Answer) {
	if rec := c.s.opts.Recorder; rec != nil {
		rec.PubSubBulkIngressEvents(c.route.sub.Topic, a.String(), 1)
	}
}

// onceBatch makes one attempt. It returns one answer per item, or an error for all.
func (c *consumer) onceBatch(ctx context.Context, path string, items []*item) ([]Answer, error) {
	if c.sink == nil {
		return c.deliverBatchHTTP(ctx, path, items)
	}
	sub := &c.route.sub
	b := &Batch{ID: newID(), Type: bulkEventType, PubSub: sub.PubSub, Topic: sub.Topic, Path: path,
		Metadata: map[string]string{"pubsubName": sub.PubSub}, Entries: make([]BatchEntry, len(items))}
	for i, it := range items {
		attempt := max(it.Attempt, 1) + it.tries
		entry := BatchEntry{EntryID: it.entryID, ContentType: cloudEventType, Metadata: it.a.headers(sub, attempt)}
		if it.event == nil {
			entry.Bytes, entry.ContentType = it.Data, octetType
		} else {
			it.event.Attempt, it.event.Metadata = attempt, entry.Metadata
			entry.Event = it.event
		}
		b.Entries[i] = entry
	}
	return c.sink.DeliverBulk(ctx, b)
}

// deliverBatchHTTP posts a batch and reads the app's answers. In a batch, unlike in a single
// delivery, silence about an entry means retry; and 404 means that all are done with.
func (c *consumer) deliverBatchHTTP(ctx context.Context, path string, items []*item) ([]Answer, error) {
	sub := &c.route.sub
	req := c.post(path, jsonType, encodeBatch(sub, items))
	req.Header.Add("pubsubName", sub.PubSub)
	status, body, err := c.exchange(ctx, req)
	switch {
	case err != nil:
		return nil, err
	case status == 404:
		c.log.ErrorContext(ctx, "the app has no handler for the route, the batch is dropped", "route", path)
		return make([]Answer, len(items)), nil
	case status < 200 || status > 299:
		return nil, statusFault(status)
	}
	return readBatchAnswer(body, items)
}

func readBatchAnswer(body []byte, items []*item) ([]Answer, error) {
	var answer struct {
		Statuses []struct {
			EntryID string `json:"entryId"`
			Status  string `json:"status"`
		} `json:"statuses"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fault.Wrap("pubsub.deliver", fault.Unavailable, fmt.Errorf("the app's answer to a batch cannot be read: %w", err))
	}
	at := make(map[string]int, len(items))
	answers := make([]Answer, len(items))
	for i, it := range items {
		at[it.entryID] = i
		answers[i] = Retry
	}
	for _, s := range answer.Statuses {
		i, known := at[s.EntryID]
		switch {
		case !known:
		case s.Status == "SUCCESS":
			answers[i] = Success
		case s.Status == "DROP":
			answers[i] = Drop
		}
	}
	return answers, nil
}

// encodeBatch makes the body of a batch. Events go in as the broker holds them.
func encodeBatch(sub *Subscription, items []*item) []byte {
	room := 256
	for _, it := range items {
		room += len(it.a.body)*4/3 + 160
	}
	raw := sub.raw()
	b := append(make([]byte, 0, room), `{"entries":[`...)
	for i, it := range items {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"contentType":"`...)
		if raw {
			b = append(b, octetType+`","entryId":"`...)
			b = append(append(b, it.entryID...), `","event":"`...)
			b = append(base64.StdEncoding.AppendEncode(b, it.Data), '"')
		} else {
			b = append(b, cloudEventType+`","entryId":"`...)
			b = append(append(b, it.entryID...), `","event":`...)
			b = append(b, it.a.body...)
		}
		b = append(b, `,"metadata":{`...)
		for name, value := range it.Metadata {
			if name != AttemptHeader {
				b = append(appendString(append(appendString(b, name), ':'), value), ',')
			}
		}
		b = append(b, `"`+AttemptHeader+`":"`...)
		b = append(strconv.AppendInt(b, int64(max(it.Attempt, 1)+it.tries), 10), `"}}`...)
	}
	b = append(append(b, `],"id":"`...), newID()...)
	b = appendMember(b, `","metadata":{"pubsubName":`, sub.PubSub)
	b = appendMember(b, `},"pubsubname":`, sub.PubSub)
	b = appendMember(b, `,"topic":`, sub.Topic)
	return append(b, `,"type":"`+bulkEventType+`"}`...)
}
