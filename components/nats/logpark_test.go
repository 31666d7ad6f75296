package nats_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/nats"
)

// Idle readers of a topic share one consumer, and wake when there is something for them.
func TestIdleReadersPark(t *testing.T) {
	url := startServer(t).ClientURL()
	l := serverLog(t, url, "pubsub")
	defer l.Close(context.Background())
	nats.ParkAfter(l, 20*time.Millisecond)
	stream, err := admin(t, url).Stream(t.Context(), "MECHA_LOG_pubsub")
	if err != nil {
		if err := l.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		if stream, err = admin(t, url).Stream(t.Context(), "MECHA_LOG_pubsub"); err != nil {
			t.Fatal(err)
		}
	}
	consumers := func() int {
		info, err := stream.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return info.State.Consumers
	}
	for _, partitions := range []int{5, 100} { // more than a consumer names
		topic := fmt.Sprint("t", partitions)
		got := make(chan block.LogRecord, 10*partitions)
		ctx, cancel := context.WithCancel(t.Context())
		var reading sync.WaitGroup
		for p := range partitions {
			r := reader(t, l, topic, int32(p), 0, block.ReadOptions{})
			reading.Go(func() {
				for {
					recs, err := r.Next(ctx, 10, 1000)
					if err != nil {
						if fault.Of(err) != fault.Canceled {
							t.Errorf("Next: %v", err)
						}
						return
					}
					for _, rec := range recs {
						got <- rec
					}
				}
			})
		}
		idle := func() {
			t.Helper()
			waitFor(t, "all to park", func() bool { return nats.Parked(l) == partitions && consumers() == (partitions+63)/64 })
		}
		idle()
		for round := range 3 {
			for p := range partitions {
				if p%(round+1) != 0 {
					continue
				}
				appended(t, l, rec(topic, int32(p), strconv.Itoa(round)))
				if round == 0 {
					continue // all at once
				}
				if r := <-got; int(r.Partition) != p || string(r.Data) != strconv.Itoa(round) {
					t.Fatalf("in round %d partition %d gave %q, want %d", round, r.Partition, r.Data, p)
				}
			}
			for range partitions {
				if round == 0 {
					<-got
				}
			}
			idle()
		}
		late := rec(topic, 0, "late")
		late.DeliverAt = time.Now().Add(300 * time.Millisecond)
		appended(t, l, late)
		if r := <-got; string(r.Data) != "late" {
			t.Errorf("read %q, want the delayed record", r.Data)
		}
		idle()
		cancel()
		reading.Wait()
		if len(got) > 0 {
			t.Errorf("%q was read too", (<-got).Data)
		}
		r := reader(t, l, topic, 0, 0, block.ReadOptions{})
		read(t, r, 4)
		ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
		if _, err := r.Next(ctx, 1, 1); fault.Of(err) != fault.Deadline {
			t.Errorf("Next of a parked reader: %v", err)
		}
		cancel()
		appended(t, l, rec(topic, 0, "end"))
		wantBodies(t, "a parked reader that nobody waited with", read(t, r, 1), "end")
		done := make(chan error, 1)
		go func() {
			_, err := r.Next(t.Context(), 1, 1)
			done <- err
		}()
		waitFor(t, "it to park", func() bool { return nats.Parked(l) == partitions }) // the others, save the one that "end" woke
		r.Close()
		if err := <-done; fault.Of(err) != fault.Unavailable {
			t.Errorf("Next of a reader closed while it was parked: %v", err)
		}
		// Those of the cancelled calls are parked still; the cleanup closes them.
		for nats.Parked(l) > 0 {
			nats.WakeAll(l)
		}
	}
}

// Parked readers hear that their stream was removed.
func TestParkedReadersOfRemovedStream(t *testing.T) {
	url := startServer(t).ClientURL()
	l := serverLog(t, url, "pubsub")
	defer l.Close(context.Background())
	nats.ParkAfter(l, 10*time.Millisecond)
	appended(t, l, rec("t", 0, "x"))
	r := reader(t, l, "t", 0, 0, block.ReadOptions{})
	read(t, r, 1)
	done := make(chan error, 1)
	go func() {
		_, err := r.Next(t.Context(), 1, 1)
		done <- err
	}()
	waitFor(t, "it to park", func() bool { return nats.Parked(l) == 1 })
	if err := admin(t, url).DeleteStream(t.Context(), "MECHA_LOG_pubsub"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if fault.Of(err) != fault.Lost {
			t.Errorf("Next: %v (%v), want lost", err, fault.Of(err))
		}
	case <-time.After(patience):
		t.Fatal("the reader waits for a stream that is gone")
	}
}
