package engine

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/group"
	"github.com/mecha-project/mecha/runtime/pubsub/lane"
)

// Hash names how keys are mapped to partitions.
const Hash = "murmur2"

// Capabilities are what the broker can do.
func (e *Engine) Capabilities() []Capability {
	f := e.log.LogFeatures()
	caps := []Capability{Seek, Manual, Epochs, Park, Resize}
	for c, has := range map[Capability]bool{Deduplication: f.Dedup > 0, Delay: f.Delay, TTL: f.TTL, Atomic: f.Atomic} {
		if has {
			caps = append(caps, c)
		}
	}
	slices.Sort(caps)
	return caps
}

// PublishInfo is what a publisher is to know of a topic, which is made if it does not exist.
func (e *Engine) PublishInfo(ctx context.Context, topic string) (PublishInfo, error) {
	l, err := e.topics.get(ctx, topic, false)
	if err != nil {
		return PublishInfo{}, err
	}
	f := e.log.LogFeatures()
	return PublishInfo{Capabilities: e.Capabilities(), Partitions: int(current(l).Count), Hash: Hash, Dedup: f.Dedup, MaxMessage: f.MaxRecord}, nil
}

// ConsumeInfo is what a consumer is to know of itself. Its topics are made if they do not exist, and its
// manual partitions are checked.
func (e *Engine) ConsumeInfo(ctx context.Context, c *Consumer) (ConsumeInfo, error) {
	o := &c.opts
	info := ConsumeInfo{Member: o.Instance, Group: o.Group, Capabilities: e.Capabilities(), SessionTTL: e.log.LogFeatures().SessionTTL,
		Limits: o.Limits, HandlerTimeout: o.HandlerTimeout, RevokeTimeout: o.RevokeTimeout}
	for _, t := range o.Topics {
		l, err := e.topics.get(ctx, t, false)
		if err != nil {
			return info, err
		}
		for _, p := range o.Manual {
			if p.Topic == t {
				if err := checkPart("pubsub.Consume", t, l, p.ID); err != nil {
					return info, err
				}
			}
		}
		info.Topics = append(info.Topics, TopicSize{Topic: t, Partitions: int(current(l).Count)})
	}
	return info, nil
}

// existing is the layout of a topic that must be there.
func (e *Engine) existing(ctx context.Context, op fault.Op, topic string) (group.Layout, error) {
	l, ok, err := e.topics.known(ctx, topic)
	if err == nil && !ok {
		err = fault.New(op, fault.NotFound, "there is no topic %q: nobody has published to it or consumed it", topic).With(fault.NoTopic)
	}
	return l, err
}

// DescribeTopic tells how a topic is divided and what it holds.
func (e *Engine) DescribeTopic(ctx context.Context, topic string) (TopicInfo, error) {
	l, err := e.existing(ctx, "pubsub.DescribeTopic", topic)
	if err != nil {
		return TopicInfo{}, err
	}
	ids := parts(l)
	bounds, err := e.log.Bounds(ctx, topic, ids)
	if err != nil {
		return TopicInfo{}, err
	}
	info := TopicInfo{Layout: l, Capabilities: e.Capabilities(), Hash: Hash}
	for i, id := range ids {
		info.Partitions = append(info.Partitions, PartBounds{ID: id, LogBounds: bounds[i]})
	}
	return info, nil
}

// ResizeTopic gives a topic another number of partitions.
func (e *Engine) ResizeTopic(ctx context.Context, topic string, partitions int) (TopicInfo, error) {
	const op fault.Op = "pubsub.ResizeTopic"
	if _, err := e.existing(ctx, op, topic); err != nil {
		return TopicInfo{}, err
	}
	if partitions < 1 || partitions > maxPartitions {
		return TopicInfo{}, fault.New(op, fault.Invalid, "%d partitions: a topic has 1 to %d", partitions, maxPartitions).With(BadPartitions)
	}
	if _, err := e.topics.resize(ctx, topic, int32(partitions)); err != nil {
		return TopicInfo{}, err
	}
	return e.DescribeTopic(ctx, topic)
}

// DescribeGroup tells who is in a group and how far it is with a topic.
func (e *Engine) DescribeGroup(ctx context.Context, groupName, topic string) (GroupInfo, error) {
	info, err := e.DescribeTopic(ctx, topic)
	if err != nil {
		return GroupInfo{}, err
	}
	members, owners, err := group.Members(ctx, e.log, groupName)
	if err != nil {
		return GroupInfo{}, err
	}
	var out GroupInfo
	for _, m := range members {
		if slices.Contains(m.Topics, topic) {
			out.Members = append(out.Members, MemberInfo{Name: m.Name, Leaving: m.Leaving})
		}
	}
	list := make([]Part, len(info.Partitions))
	for i, p := range info.Partitions {
		list[i] = Part{Topic: topic, ID: p.ID}
	}
	progress, err := e.progress(ctx, groupName, list)
	if err != nil {
		return GroupInfo{}, err
	}
	for i, p := range info.Partitions {
		o := owners[list[i]]
		g := GroupPart{ID: p.ID, Owner: o.Seat, Epoch: o.Epoch, Committed: progress[i].Watermark, End: p.Next, ParkedKeys: len(progress[i].Parked)}
		if from := max(g.Committed, p.First); p.Next > from {
			g.Lag = p.Next - from
		}
		out.Partitions = append(out.Partitions, g)
	}
	return out, nil
}

// progress is how far a group is, as committed.
func (e *Engine) progress(ctx context.Context, groupName string, list []Part) ([]lane.Progress, error) {
	bodies, err := group.Committed(ctx, e.log, groupName, list)
	if err != nil {
		return nil, err
	}
	out := make([]lane.Progress, len(list))
	for i, b := range bodies {
		if len(b) == 0 {
			continue
		}
		if out[i], err = lane.ParseProgress(b); err != nil {
			return nil, fault.New("pubsub.progress", fault.Internal, "partition %s", list[i]).Because(err)
		}
	}
	return out, nil
}

// ResetGroup moves a group's progress with a topic. The owners do it, or the next ones.
func (e *Engine) ResetGroup(ctx context.Context, groupName, topic string, ids []int32, to Place) error {
	const op fault.Op = "pubsub.ResetGroup"
	l, err := e.existing(ctx, op, topic)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := checkPart(op, topic, l, id); err != nil {
			return err
		}
	}
	if len(ids) == 0 {
		ids = parts(l)
	}
	for _, id := range ids {
		if err := e.ask(ctx, groupName, Part{Topic: topic, ID: id}, func(o *order) { o.Seek = &to }); err != nil {
			return err
		}
	}
	return nil
}

// ask leaves a command for the owner of a partition, together with what is there already.
func (e *Engine) ask(ctx context.Context, groupName string, p Part, add func(*order)) error {
	_, err := group.Ask(ctx, e.log, groupName, p, func(pending []byte) ([]byte, error) {
		var o order
		if len(pending) > 0 && json.Unmarshal(pending, &o) != nil {
			o = order{} // nobody could carry it out either
		}
		add(&o)
		return json.Marshal(o)
	})
	return err
}

// ListParked lists the keys a group has set aside, by partition and key, size at a time from behind token.
func (e *Engine) ListParked(ctx context.Context, groupName, topic, token string, size int) (keys []Parked, next string, err error) {
	const op fault.Op = "pubsub.ListParked"
	l, err := e.existing(ctx, op, topic)
	if err != nil {
		return nil, "", err
	}
	var after parkedPlace
	if token != "" {
		text, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil || json.Unmarshal(text, &after) != nil {
			return nil, "", fault.New(op, fault.Invalid, "the page token %q is none of this service's", token).With(fault.BadToken)
		}
	}
	var list []Part
	for _, id := range parts(l) {
		list = append(list, Part{Topic: topic, ID: id})
	}
	progress, err := e.progress(ctx, groupName, list)
	if err != nil {
		return nil, "", err
	}
	for i, p := range progress {
		for _, k := range p.Parked {
			at := parkedPlace{ID: list[i].ID, Key: k.Key}
			if token != "" && at.compare(after) <= 0 {
				continue
			}
			if len(keys) == size {
				last := keys[size-1]
				b, err := json.Marshal(parkedPlace{ID: last.ID, Key: last.Key})
				return keys, base64.RawURLEncoding.EncodeToString(b), fault.Wrap(op, fault.Internal, err)
			}
			out := Parked{ID: at.ID, Key: k.Key, Messages: int(min(k.Count, 1<<31)), First: k.Since}
			out.Since, out.Reason = e.firstParked(ctx, groupName, list[i], k)
			keys = append(keys, out)
		}
	}
	return keys, "", nil
}

// parkedPlace is where a page of parked keys ended.
type parkedPlace struct {
	ID  int32  `json:"p"`
	Key string `json:"k"`
}

func (a parkedPlace) compare(b parkedPlace) int {
	return cmp.Or(cmp.Compare(a.ID, b.ID), strings.Compare(a.Key, b.Key))
}

// firstParked tells when a key was set aside, and why, if its first copy can be read soon.
func (e *Engine) firstParked(ctx context.Context, groupName string, p Part, k lane.ParkedKey) (time.Time, string) {
	if k.From == 0 {
		return time.Time{}, ""
	}
	ctx, stop := context.WithTimeout(ctx, time.Second)
	defer stop()
	r, err := e.log.OpenReader(ctx, parkLog(groupName, p.Topic), p.ID, k.From, block.ReadOptions{Messages: 1})
	if err != nil {
		return time.Time{}, ""
	}
	defer r.Close()
	recs, err := r.Next(ctx, 1, 1)
	if err != nil || recs[0].Key != k.Key {
		return time.Time{}, ""
	}
	return recs[0].Time, recs[0].Metadata[metaReason]
}

// Unpark has a key's parked messages delivered again, or drops them. It tells how many there are.
func (e *Engine) Unpark(ctx context.Context, groupName, topic string, id int32, key string, drop bool) (int, error) {
	const op fault.Op = "pubsub.Unpark"
	l, err := e.existing(ctx, op, topic)
	if err != nil {
		return 0, err
	}
	if err := checkPart(op, topic, l, id); err != nil {
		return 0, err
	}
	p := Part{Topic: topic, ID: id}
	progress, err := e.progress(ctx, groupName, []Part{p})
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(progress[0].Parked, func(k lane.ParkedKey) bool { return k.Key == key })
	if i < 0 {
		return 0, fault.New(op, fault.NotFound, "group %q has parked no messages of key %q in partition %s", groupName, key, p).With(NotParked)
	}
	err = e.ask(ctx, groupName, p, func(o *order) {
		list := &o.Unpark
		if drop {
			list = &o.Drop
		}
		if !slices.Contains(*list, key) { // who asks again and again gets it once
			*list = append(*list, key)
		}
	})
	return int(min(progress[0].Parked[i].Count, 1<<31)), err
}
