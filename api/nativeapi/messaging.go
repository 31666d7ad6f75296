package nativeapi

import (
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mecha-project/mecha/api/apierr"
	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// Messaging is the service of partitioned topics. Components are named as in the request; an empty
// group is the app's own. Errors are faults: NoSuchComponent, NoComponents, ForbiddenTopic,
// NoTopic as elsewhere, and those of the methods below.
type Messaging interface {
	// OpenPublisher checks what can be checked and prepares to publish to a topic. ctx is that of the
	// stream: when it ends, what is under way may be given up. A producer is no error where the broker
	// lacks Deduplication; PublishInfo tells.
	OpenPublisher(ctx context.Context, component string, o engine.PublishOptions) (Publisher, engine.PublishInfo, error)
	// OpenConsumer checks what can be checked; it joins no group yet, Consumer.Run does. tell is
	// called while Run runs and not after: by any goroutine, also with locks held, for it neither
	// blocks nor calls back. The order of its calls is the order on the stream. What it is told belongs
	// to it.
	//
	// fault.Invalid: options that cannot be (bad_option); a manual partition that the topic does not have
	// (no_such_partition). fault.Unsupported: an option needs what the broker lacks
	// (missing_capability).
	OpenConsumer(ctx context.Context, component string, o engine.ConsumeOptions, tell func(engine.Event)) (Consumer, engine.ConsumeInfo, error)
	DescribeTopic(ctx context.Context, component, topic string) (engine.TopicInfo, error)
	DescribeGroup(ctx context.Context, component, group, topic string) (engine.GroupInfo, error)
	// ResetGroup moves the progress of partitions; none means all. fault.Invalid
	// (no_such_partition): the topic does not have one of them; then none is moved.
	ResetGroup(ctx context.Context, component, group, topic string, partitions []int32, to engine.Place) error
	// ListParked gives a page of at most size keys. The first page has no token, the last no next.
	// fault.Invalid (bad_page_token): the token is none of ours.
	ListParked(ctx context.Context, component, group, topic, token string, size int) (keys []engine.Parked, next string, err error)
	// Unpark has the messages of a key delivered again, or drops them, and tells how many.
	// fault.NotFound (not_parked): there are none.
	Unpark(ctx context.Context, component, group, topic string, partition int32, key string, drop bool) (messages int, err error)
	// ResizeTopic adds a generation of that many partitions. fault.Invalid (bad_partitions): the
	// broker cannot have that number.
	ResizeTopic(ctx context.Context, component, topic string, partitions int) (engine.TopicInfo, error)
	// Ending is closed when the sidecar ends and streams of publishers are to end.
	Ending() <-chan struct{}
}

// Publisher publishes to one topic. Publish, Resume and Close are called by one goroutine.
type Publisher interface {
	// Publish takes a batch; the order of calls is the order of messages. It may return before
	// anything is appended, and may block for as long as the broker is slow or until ctx ends.
	// done is called exactly once, by any goroutine, also before Publish returns, with a receipt for
	// each entry. Calls of done need not come in the order of calls of Publish.
	//
	// Receipt.Err: fault.Conflict (preceding_failed); fault.TooLarge; fault.Invalid
	// (no_such_partition); fault.Unsupported (missing_capability) for DeliverAt, Atomic and the
	// like where the broker lacks it; ctx's error when it ended. An entry whose ID is set is known by it,
	// others by the producer and their number: sent again, also to another Publisher, they go to the
	// same partition.
	Publish(ctx context.Context, b engine.Batch, done func([]engine.Receipt))
	// Resume lets messages of the key, or of the partition, through again, behind those that
	// Publish took before.
	Resume(key string, partition *int32)
	// Close gives up nothing that Publish took: done is still called.
	Close()
}

// Consumer is one member of a group. Its methods may be called at once by several goroutines, also
// while Run runs; they neither block nor wait for the broker. An error of Credit, Ack, Nack, Extend,
// RevokeDone or Control means that nothing was changed. After Run has returned they do nothing.
//
// Of a partition: fault.Conflict (stale_epoch) when the epoch is over, which is so as soon as
// RevokeDone was called or Lost told; fault.Invalid (not_assigned) when it never was the
// consumer's; fault.Invalid (not_delivered) when a message was not delivered under the
// epoch.
type Consumer interface {
	// Run joins the group and tells what happens, until Close, until ctx ends, which counts as a lost
	// connection, or until it cannot go on. It returns nil after Close, ctx's error, or why:
	// fault.Conflict (instance_replaced) when another one came with the same instance name,
	// fault.Unavailable when the sidecar ends.
	Run(ctx context.Context) error
	// Credit adds to what may be delivered, to all or to one partition. Each is at most 1<<40, which
	// stands for no bound.
	Credit(messages, bytes int, part *engine.Part) error
	// Ack resolves messages. Positions that no message has do not matter, nor do messages that
	// are resolved already. It does not keep ranges.
	Ack(part engine.Part, epoch uint64, ranges []engine.Range) error
	// Nack says that a message could not be handled.
	Nack(r engine.Refusal) error
	// Extend gives a message more time; 0 means another handler timeout.
	Extend(part engine.Part, epoch, position uint64, by time.Duration) error
	// RevokeDone answers a Revoking; no parts means all of it. fault.Invalid (no_revoking):
	// there is no such assignment, or a partition is none of its. One that is answered already
	// is no error.
	RevokeDone(assignment uint64, parts []engine.Part) error
	// Control changes what it says. What takes time, as a seek, is begun; its failure is an
	// engine.Fault.
	Control(c engine.Control) error
	// Close leaves the group, with drain as soon as everything at the app is resolved or the revoke
	// timeout is over; then Run returns. It is safe twice, the second time without drain to
	// hurry, and before Run, which returns at once then.
	Close(drain bool)
}

// Reasons of faults that are found here.
const (
	frameOrder        fault.Reason = "frame_order"
	unknownFrame      fault.Reason = "unknown_frame"
	missingCapability fault.Reason = "missing_capability"
	badOption         fault.Reason = "bad_option"
	badEntry          fault.Reason = "bad_entry"
	badCredit         fault.Reason = "bad_credit"
	badRange          fault.Reason = "bad_range"
	unread            fault.Reason = "unread"
)

const opMessaging fault.Op = "nativeapi.Messaging"

func invalid(r fault.Reason, format string, args ...any) error {
	return fault.New(opMessaging, fault.Invalid, format, args...).With(r)
}

type messagingServer struct {
	mechav1.UnimplementedMessagingServer
	s Messaging
}

// require fails when one of the capabilities asked for is not there.
func require(component string, want []mechav1.Capability, have []engine.Capability) error {
	for _, c := range want {
		if c != mechav1.Capability_CAPABILITY_UNSPECIFIED && (c < 0 || c > math.MaxUint8 || !slices.Contains(have, engine.Capability(c))) {
			return fault.New(opMessaging, fault.Unsupported, "pub/sub component %q lacks %v, which the app requires; opened.capabilities of a stream without it, or DescribeTopic, tells what it has", component, c).With(missingCapability)
		}
	}
	return nil
}

func capabilities(have []engine.Capability) []mechav1.Capability {
	out := make([]mechav1.Capability, len(have))
	for i, c := range have {
		out[i] = mechav1.Capability(c)
	}
	return out
}

func ordering(in mechav1.Ordering) (engine.Ordering, error) {
	switch in {
	case mechav1.Ordering_ORDERING_UNSPECIFIED, mechav1.Ordering_ORDERING_KEY:
		return engine.OrderKey, nil
	case mechav1.Ordering_ORDERING_PARTITION:
		return engine.OrderPartition, nil
	case mechav1.Ordering_ORDERING_NONE:
		return engine.OrderNone, nil
	}
	return 0, invalid(badOption, "ordering is %d, which is not known", in)
}

// place reads a place; the caller judges an absent one.
func place(name string, in *mechav1.Place) (engine.Place, error) {
	switch p := in.GetPlace().(type) {
	case *mechav1.Place_Earliest:
		if p.Earliest {
			return engine.Place{Kind: engine.Earliest}, nil
		}
	case *mechav1.Place_Latest:
		if p.Latest {
			return engine.Place{Kind: engine.Latest}, nil
		}
	case *mechav1.Place_Time:
		if err := p.Time.CheckValid(); err != nil {
			return engine.Place{}, invalid(badOption, "%s.time: %v", name, err)
		}
		return engine.Place{Kind: engine.AtTime, Time: p.Time.AsTime()}, nil
	case *mechav1.Place_Position:
		if p.Position == 0 {
			return engine.Place{Kind: engine.Earliest}, nil
		}
		return engine.Place{Kind: engine.AtPosition, Position: p.Position}, nil
	}
	return engine.Place{}, invalid(badOption, "%s is none of earliest, latest, time and position", name)
}

// partitionID reads a partition's number.
func partitionID(n uint32) (int32, error) {
	if n > math.MaxInt32 {
		return 0, invalid(engine.NoSuchPartition, "partition %d cannot be; the largest number is %d", n, math.MaxInt32)
	}
	return int32(n), nil
}

func part(topic string, n uint32) (engine.Part, error) {
	id, err := partitionID(n)
	return engine.Part{Topic: topic, ID: id}, err
}

func parts(in []*mechav1.Partition) ([]engine.Part, error) {
	var out []engine.Part
	for _, p := range in {
		q, err := part(p.GetTopic(), p.GetPartition())
		if err != nil {
			return nil, err
		}
		out = append(out, q)
	}
	return out, nil
}

// text is a string as protobuf allows it: a broker's keys and headers may be any bytes.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// headers are a message's, in the same form.
func headers(in map[string]string) map[string]string {
	for k, v := range in {
		if text(k) != k || text(v) != v {
			out := make(map[string]string, len(in))
			for k, v := range in {
				out[text(k)] = text(v)
			}
			return out
		}
	}
	return in
}

// faultOf is an error as a frame or a receipt tells of it.
func faultOf(err error, phase string, about *mechav1.Epoch) *mechav1.MessagingFault {
	e := apierr.Native(err)
	out := &mechav1.MessagingFault{Code: int32(e.GRPC), Reason: e.Info, Message: text(e.Message), Phase: phase, Partition: about} //nolint:gosec // codes are small
	switch e.GRPC {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		out.Retryable = fault.Of(err) != fault.TooLarge
	}
	if e.After > 0 {
		out.RetryAfter = durationpb.New(e.After)
	}
	return out
}

func span(d time.Duration) *durationpb.Duration {
	if d <= 0 {
		return nil
	}
	return durationpb.New(d)
}

// whole is a size as the wire has it.
func whole(n int) uint32 { return uint32(min(max(n, 0), math.MaxUint32)) } //nolint:gosec // bounded

func wide(n int) uint64 { return uint64(max(n, 0)) } //nolint:gosec // bounded

// most stands for any number that is as good as no bound; sums of it are still numbers.
const most = 1 << 40

// number is a size off the wire.
func number(n uint64) int { return int(min(n, most)) } //nolint:gosec // bounded

// DescribeTopic tells how a topic is divided.
func (s *messagingServer) DescribeTopic(ctx context.Context, in *mechav1.DescribeTopicRequest) (*mechav1.DescribeTopicResponse, error) {
	info, err := s.s.DescribeTopic(ctx, in.GetPubsubName(), in.GetTopic())
	if err != nil {
		return nil, apierr.Native(err)
	}
	out := &mechav1.DescribeTopicResponse{Generations: generations(info), Capabilities: capabilities(info.Capabilities), Hash: info.Hash}
	for _, p := range info.Partitions {
		out.Partitions = append(out.Partitions, &mechav1.TopicPartition{Partition: uint32(p.ID), First: p.First, End: p.Next})
	}
	return out, nil
}

func generations(info engine.TopicInfo) []*mechav1.TopicGeneration {
	var out []*mechav1.TopicGeneration
	for _, g := range info.Layout.Generations {
		out = append(out, &mechav1.TopicGeneration{First: uint32(g.First), Count: uint32(g.Count)})
	}
	return out
}

// DescribeGroup tells who is in a group and how far it is.
func (s *messagingServer) DescribeGroup(ctx context.Context, in *mechav1.DescribeGroupRequest) (*mechav1.DescribeGroupResponse, error) {
	info, err := s.s.DescribeGroup(ctx, in.GetPubsubName(), in.GetGroup(), in.GetTopic())
	if err != nil {
		return nil, apierr.Native(err)
	}
	out := &mechav1.DescribeGroupResponse{}
	for _, m := range info.Members {
		out.Members = append(out.Members, &mechav1.GroupMember{Member: text(m.Name), Leaving: m.Leaving})
	}
	for _, p := range info.Partitions {
		out.Partitions = append(out.Partitions, &mechav1.GroupPartition{Partition: uint32(p.ID), Owner: text(p.Owner), Epoch: p.Epoch,
			Committed: p.Committed, End: p.End, Lag: p.Lag, ParkedKeys: whole(p.ParkedKeys)})
	}
	return out, nil
}

// ResetGroup moves a group's progress.
func (s *messagingServer) ResetGroup(ctx context.Context, in *mechav1.ResetGroupRequest) (*mechav1.ResetGroupResponse, error) {
	to, err := place("to", in.GetTo())
	if err != nil {
		return nil, apierr.Native(err)
	}
	ids := make([]int32, len(in.GetPartitions()))
	for i, n := range in.GetPartitions() {
		if ids[i], err = partitionID(n); err != nil {
			return nil, apierr.Native(err)
		}
	}
	if err := s.s.ResetGroup(ctx, in.GetPubsubName(), in.GetGroup(), in.GetTopic(), ids, to); err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.ResetGroupResponse{}, nil
}

// ListParked gives one page of parked keys.
func (s *messagingServer) ListParked(ctx context.Context, in *mechav1.ListParkedRequest) (*mechav1.ListParkedResponse, error) {
	size := in.GetPageSize()
	if size == 0 {
		size = 100
	}
	if size > 1000 {
		return nil, apierr.Native(invalid(badOption, "page_size is %d; the most is 1000", size))
	}
	keys, next, err := s.s.ListParked(ctx, in.GetPubsubName(), in.GetGroup(), in.GetTopic(), in.GetPageToken(), int(size))
	if err != nil {
		return nil, apierr.Native(err)
	}
	out := &mechav1.ListParkedResponse{NextPageToken: next}
	for _, k := range keys {
		out.Keys = append(out.Keys, &mechav1.ParkedKey{Partition: uint32(k.ID), Key: text(k.Key), Messages: wide(k.Messages), First: k.First,
			Since: moment(k.Since), Reason: text(k.Reason)})
	}
	return out, nil
}

// Unpark has parked messages delivered again.
func (s *messagingServer) Unpark(ctx context.Context, in *mechav1.UnparkRequest) (*mechav1.UnparkResponse, error) {
	id, err := partitionID(in.GetPartition())
	if err != nil {
		return nil, apierr.Native(err)
	}
	n, err := s.s.Unpark(ctx, in.GetPubsubName(), in.GetGroup(), in.GetTopic(), id, in.GetKey(), in.GetDrop())
	if err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.UnparkResponse{Messages: wide(n)}, nil
}

// ResizeTopic gives a topic another number of partitions.
func (s *messagingServer) ResizeTopic(ctx context.Context, in *mechav1.ResizeTopicRequest) (*mechav1.ResizeTopicResponse, error) {
	if n := in.GetPartitions(); n == 0 || n > math.MaxInt32 {
		return nil, apierr.Native(invalid(engine.BadPartitions, "partitions is %d; a topic has at least one", n))
	}
	info, err := s.s.ResizeTopic(ctx, in.GetPubsubName(), in.GetTopic(), int(in.GetPartitions()))
	if err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.ResizeTopicResponse{Generations: generations(info)}, nil
}
