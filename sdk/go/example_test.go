package mecha_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	mecha "github.com/mecha-project/mecha/sdk/go"
)

// A handler for each message: messages of one customer come one after the other, those of different
// ones at once.
func ExampleClient_Consume() {
	client, err := mecha.Dial() // the sidecar beside this process
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	publish(client, "payments", "ada", "10", "20", "-30", "40")

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err = client.Consume(ctx, mecha.ConsumeOptions{PubSub: "pubsub", Topics: []string{"payments"}, Log: quiet}, func(_ context.Context, m *mecha.Message) error {
		if m.Value[0] == '-' {
			fmt.Printf("%s: %s is set aside\n", m.Key, m.Value)
			return mecha.DeadLetter(errors.New("nobody pays a negative amount"))
		}
		fmt.Printf("%s: %s, attempt %d, gap %t\n", m.Key, m.Value, m.Attempt, m.OrderGap)
		if string(m.Value) == "40" {
			cancel() // enough; Consume acknowledges, leaves the group and returns
		}
		return nil
	})
	fmt.Println("ended:", err)
	// Output:
	// ada: 10, attempt 1, gap false
	// ada: 20, attempt 1, gap false
	// ada: -30 is set aside
	// ada: 40, attempt 1, gap true
	// ended: <nil>
}

func publish(client *mecha.Client, topic, key string, values ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	p, err := client.NewPublisher(mecha.Topic{PubSub: "pubsub", Name: topic}, mecha.PublisherOptions{})
	if err != nil {
		log.Fatal(err)
	}
	for _, v := range values {
		if _, err := p.Publish(ctx, mecha.Entry{Key: key, Value: []byte(v)}); err != nil {
			log.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		log.Fatal(err)
	}
}

// A receipt says where each message went. Publish waits for it; PublishAsync has many under way.
func ExamplePublisher() {
	client, err := mecha.Dial()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	p, err := client.NewPublisher(mecha.Topic{PubSub: "pubsub", Name: "shipments"}, mecha.PublisherOptions{})
	if err != nil {
		log.Fatal(err)
	}
	first, err := p.Publish(ctx, mecha.Entry{Key: "ada", Value: []byte("packed"), Headers: map[string]string{"warehouse": "7"}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("position", first.Position)

	for _, v := range []string{"sent", "arrived"} {
		p.PublishAsync(ctx, mecha.Entry{Key: "ada", Value: []byte(v)}, func(r mecha.Receipt, err error) {
			fmt.Println(v, "position", r.Position, "same partition", r.Partition == first.Partition, err)
		})
	}
	if err := p.Close(ctx); err != nil { // waits for the receipts
		log.Fatal(err)
	}
	// Output:
	// position 1
	// sent position 2 same partition true <nil>
	// arrived position 3 same partition true <nil>
}

// Every frame in sight: partitions, credits and acknowledgements are the caller's.
func ExampleClient_OpenStream() {
	client, err := mecha.Dial()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	publish(client, "readings", "sensor-1", "18.5", "18.7", "18.6")

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := client.OpenStream(ctx, &mechav1.ConsumeOpen{PubsubName: "pubsub", Topics: []string{"readings"}, InstanceId: "pod-0", Credited: true,
		Require: []mechav1.Capability{mechav1.Capability_CAPABILITY_EPOCHS}})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Abort()
	fmt.Println("member", s.Opened().GetMember())
	if err := s.Credit(2, 0, nil); err != nil {
		log.Fatal(err)
	}
	for handled := 0; handled < 2; {
		f, err := s.Receive()
		if err != nil {
			log.Fatal(err)
		}
		switch f := f.GetFrame().(type) {
		case *mechav1.BrokerFrame_Assigned:
			fmt.Println("partitions", len(f.Assigned.GetPartitions()))
		case *mechav1.BrokerFrame_Deliver:
			d := f.Deliver
			for _, m := range d.GetMessages() {
				fmt.Printf("position %d: %s\n", m.GetPosition(), m.GetValue())
				of := &mechav1.Epoch{Topic: d.GetTopic(), Partition: d.GetPartition(), Epoch: d.GetEpoch()}
				if err := s.Ack(of, &mechav1.PositionRange{From: m.GetPosition()}); err != nil {
					log.Fatal(err)
				}
				handled++
			}
		case *mechav1.BrokerFrame_Revoking: // finish or give up what is in hand, then:
			if err := s.RevokeDone(f.Revoking.GetAssignment()); err != nil {
				log.Fatal(err)
			}
		}
	}
	if err := s.Close(true); err != nil {
		log.Fatal(err)
	}
	for err == nil {
		_, err = s.Receive()
	}
	fmt.Println(err)
	// Output:
	// member pod-0
	// partitions 4
	// position 1: 18.5
	// position 2: 18.7
	// EOF
}

// What is parked is found, looked at, and delivered again.
func ExampleClient_Parked() {
	client, err := mecha.Dial()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	topic := mecha.Topic{PubSub: "pubsub", Name: "claims"}
	publish(client, topic.Name, "ada", "broken", "fine")

	// The database is down: the handler parks.
	consuming, stop := context.WithCancel(ctx)
	err = client.Consume(consuming, mecha.ConsumeOptions{PubSub: topic.PubSub, Topics: []string{topic.Name}, Log: quiet}, func(context.Context, *mecha.Message) error {
		stop()
		return mecha.Park(errors.New("the database is down"))
	})
	if err != nil {
		log.Fatal(err)
	}

	// It is up again.
	for k, err := range client.Parked(ctx, topic, "") {
		if err != nil {
			log.Fatal(err)
		}
		n, err := client.Unpark(ctx, topic, "", k.GetPartition(), k.GetKey())
		fmt.Printf("%s, %d messages: %s; %d come again, %v\n", k.GetKey(), k.GetMessages(), k.GetReason(), n, err)
	}
	// Output:
	// ada, 2 messages: the database is down; 2 come again, <nil>
}

// State that is written under the epoch of a message's partition cannot be overwritten by a former
// owner of the partition.
func ExampleMessage_IfEpoch() {
	handle := func(client *mecha.Client) mecha.Handler {
		state := mechav1.NewStateClient(client.Conn())
		return func(ctx context.Context, m *mecha.Message) error {
			_, err := state.Write(ctx, &mechav1.WriteRequest{StoreName: "statestore", IfEpoch: m.IfEpoch(),
				Operations: []*mechav1.StateOperation{{Operation: &mechav1.StateOperation_Set{Set: &mechav1.SetState{Key: m.Key, Value: m.Value}}}}})
			return err
		}
	}
	_ = handle // pass it to Client.Consume
}
