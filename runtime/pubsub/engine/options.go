package engine

import (
	"crypto/rand"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/lane"
)

// Defaults of ConsumeOptions and Limits.
const (
	defaultPartitionMessages = 256
	defaultPartitionBytes    = 4 << 20
	defaultMessages          = 1024
	defaultBytes             = 16 << 20
	defaultWindow            = 10_000
	defaultHandlerTimeout    = 5 * time.Minute
	defaultRevokeTimeout     = 10 * time.Second
	defaultAttempts          = 10
	defaultFirst             = 500 * time.Millisecond
	defaultMax               = time.Minute

	// maxProgress keeps a progress record below what brokers take for one: Kafka's commit metadata
	// holds 4096 bytes.
	maxProgress = 3 << 10
	// maxBatch messages, and maxBatchBytes, go into one Deliver.
	maxBatch      = 256
	maxBatchBytes = 1 << 20
)

// complete fills in the defaults.
func (o *ConsumeOptions) complete() error {
	const op fault.Op = "pubsub.Consume"
	bad := func(format string, args ...any) *fault.Error {
		return fault.New(op, fault.Invalid, format, args...)
	}
	o.Topics = slices.Clone(o.Topics)
	slices.Sort(o.Topics)
	o.Topics = slices.Compact(o.Topics)
	switch {
	case len(o.Topics) == 0:
		return bad("no topic is given").With(fault.NoTopic)
	case o.Topics[0] == "":
		return bad("a topic is empty").With(fault.NoTopic)
	case o.Group == "":
		return bad("no group is given")
	case o.Ordering > OrderLoose:
		return bad("ordering %d is not known", o.Ordering)
	case o.Retry.Then > RemedyDrop:
		return bad("retry: remedy %d is not known", o.Retry.Then)
	case o.Retry.First < 0 || o.Retry.Max < 0:
		return bad("retry: a pause is negative")
	}
	for _, t := range o.Topics {
		if strings.HasPrefix(t, reservedPrefix) {
			return reserved(op, t)
		}
	}
	for _, p := range o.Manual {
		if !slices.Contains(o.Topics, p.Topic) || p.ID < 0 {
			return bad("manual partition %s is of none of the topics", p)
		}
	}
	for _, l := range []struct {
		name   string
		value  *int
		normal int
	}{
		{"partition messages", &o.Limits.PartitionMessages, defaultPartitionMessages},
		{"partition bytes", &o.Limits.PartitionBytes, defaultPartitionBytes},
		{"messages", &o.Limits.Messages, defaultMessages},
		{"bytes", &o.Limits.Bytes, defaultBytes},
		{"concurrency", &o.Limits.Concurrency, o.Limits.Messages},
		{"keys", &o.Limits.Keys, o.Limits.PartitionMessages},
		{"window", &o.Limits.Window, defaultWindow},
	} {
		if *l.value < 0 {
			return bad("limits: %s is negative", l.name)
		}
		if *l.value == 0 {
			*l.value = l.normal
		}
		if *l.value == 0 {
			*l.value = defaultMessages
		}
	}
	o.Limits.PartitionMessages = min(o.Limits.PartitionMessages, o.Limits.Keys)
	o.Limits.Window = max(o.Limits.Window, o.Limits.PartitionMessages)
	fill(&o.Retry.First, defaultFirst)
	fill(&o.Retry.Max, max(defaultMax, o.Retry.First))
	if o.Retry.Attempts == 0 {
		o.Retry.Attempts = defaultAttempts
	}
	if o.Retry.Then == RemedyRetry {
		o.Retry.Attempts = -1
	}
	fill(&o.HandlerTimeout, defaultHandlerTimeout)
	o.HandlerTimeout = max(o.HandlerTimeout, 0)
	fill(&o.RevokeTimeout, defaultRevokeTimeout)
	if o.Instance == "" {
		o.Instance = rand.Text()
	}
	return nil
}

func fill(d *time.Duration, normal time.Duration) {
	if *d == 0 {
		*d = normal
	}
}

// Options are the consumer's, completed.
func (c *Consumer) Options() ConsumeOptions { return c.opts }

// backoff is the pause after failure n: doubled each time, a fifth either way at random, so that
// messages that failed together do not come back together.
func (c *Consumer) backoff(n int) time.Duration {
	d := c.opts.Retry.First
	for ; n > 1 && d < c.opts.Retry.Max; n-- {
		d *= 2
	}
	d = min(d, c.opts.Retry.Max)
	return time.Duration(float64(d) * (0.8 + 0.4*mathrand.Float64()))
}

func (c *Consumer) laneOptions() lane.Options {
	o := &c.opts
	progress := maxProgress
	if most := c.e.log.LogFeatures().MaxEntry; most > 0 {
		progress = min(progress, most-256)
	}
	return lane.Options{Ordering: o.Ordering, Attempts: o.Retry.Attempts, Then: o.Retry.Then, Backoff: c.backoff,
		HandlerTimeout: o.HandlerTimeout, InFlight: o.Limits.PartitionMessages, InFlightBytes: o.Limits.PartitionBytes,
		Window: o.Limits.Window, Buffer: 2 * o.Limits.PartitionBytes, MaxProgress: progress}
}
