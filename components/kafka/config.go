package kafka

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
)

// ProducerConfig says how records are appended.
type ProducerConfig struct {
	// Partitioner chooses the partition of a record with a key: murmur2 as Kafka's Java clients
	// do, fnv1a as Dapr does.
	Partitioner string `yaml:"partitioner" enum:"murmur2,fnv1a"`
	// MaxMessageBytes bounds a record, with others of its batch. 0 means 1000012, which is what
	// brokers take unless they are told otherwise.
	MaxMessageBytes conf.ByteSize `yaml:"maxMessageBytes"`
	// Compression is how batches are packed.
	Compression string `yaml:"compression" enum:"none,gzip,snappy,lz4,zstd"`
	// WriteTimeout bounds an append, beside the call's own deadline. A record that could not be
	// sent within it is dropped, and said to be.
	WriteTimeout time.Duration `yaml:"writeTimeout" unit:"s"`
	// RequiredAcks is accepted; whatever it says, a record counts as appended when all in-sync
	// replicas have it.
	RequiredAcks string `yaml:"producerRequiredAcks"`
	// RetryMax is accepted and has no effect: a record is tried again within writeTimeout.
	RetryMax *int `yaml:"producerRetryMax"`
}

// The words of the configuration that code compares.
const (
	partitionFNV = "fnv1a"
	offsetOldest = "oldest"
)

func defaultProducer() ProducerConfig {
	return ProducerConfig{Partitioner: "murmur2", Compression: "none", WriteTimeout: 10 * time.Second}
}

// Validate reports what cannot work.
func (c *ProducerConfig) Validate() error {
	var errs []error
	if c.MaxMessageBytes < 0 || c.MaxMessageBytes > maxBatch {
		errs = append(errs, conf.Bad("maxMessageBytes", "must be from 0 to %v", conf.ByteSize(maxBatch)))
	}
	if c.WriteTimeout < time.Second || c.WriteTimeout > 15*time.Minute {
		errs = append(errs, conf.Bad("writeTimeout", "%v is not between 1s and 15m", c.WriteTimeout))
	}
	return errors.Join(errs...)
}

// maxBatch leaves room for a request around a batch: brokers take requests of 100 MiB.
const maxBatch = 99 * conf.MiB

// maxWaiting bounds what waits to be sent while brokers are away, in bytes.
const maxWaiting = 64 << 20

func (c *ProducerConfig) options() []kgo.Opt {
	opts := []kgo.Opt{
		kgo.RequiredAcks(kgo.AllISRAcks()), kgo.RecordPartitioner(partitioner{c.hash()}), kgo.RecordDeliveryTimeout(c.WriteTimeout),
		kgo.ProduceRequestTimeout(c.WriteTimeout), kgo.ProducerLinger(0), // callers wait for each record
		kgo.MaxBufferedBytes(max(maxWaiting, 2*int(c.MaxMessageBytes))), kgo.BrokerMaxWriteBytes(100 << 20),
		// A topic that was just made is not known everywhere at once.
		kgo.UnknownTopicRetries(8),
	}
	if c.MaxMessageBytes > 0 {
		opts = append(opts, kgo.ProducerBatchMaxBytes(int32(c.MaxMessageBytes)))
	}
	codec := kgo.NoCompression()
	switch c.Compression {
	case "gzip":
		codec = kgo.GzipCompression()
	case "snappy":
		codec = kgo.SnappyCompression()
	case "lz4":
		codec = kgo.Lz4Compression()
	case "zstd":
		codec = kgo.ZstdCompression()
	}
	return append(opts, kgo.ProducerBatchCompression(codec))
}

func (c *ProducerConfig) warn(log *slog.Logger) {
	if a := strings.ToLower(c.RequiredAcks); a != "" && a != "all" && a != "-1" {
		log.Warn("producerRequiredAcks is taken as all: what is acknowledged is not lost with one broker", "given", c.RequiredAcks)
	}
	if c.RetryMax != nil {
		log.Warn("producerRetryMax has no effect: a record is tried again within writeTimeout")
	}
}

// HeaderConfig says what becomes of the headers of records.
type HeaderConfig struct {
	// EscapeHeaders gives keys and the values of headers to the app as they are in a URL.
	EscapeHeaders bool `yaml:"escapeHeaders"`
	// ExcludeHeaders is a regular expression; metadata whose names match do not become headers of
	// a record, and headers that match do not become metadata.
	ExcludeHeaders string `yaml:"excludeHeaderMetaRegex"`
}

// Validate judges the expression.
func (c *HeaderConfig) Validate() error {
	if _, err := c.compile(); err != nil {
		return conf.Bad("excludeHeaderMetaRegex", "%v", err)
	}
	return nil
}

func (c *HeaderConfig) compile() (*headers, error) {
	h := &headers{escape: c.EscapeHeaders}
	if c.ExcludeHeaders == "" {
		return h, nil
	}
	var err error
	h.exclude, err = regexp.Compile(c.ExcludeHeaders)
	return h, err
}

// headers is a HeaderConfig ready for use.
type headers struct {
	escape  bool
	exclude *regexp.Regexp // nil: none
}

func (h *headers) leftOut(name string) bool { return h.exclude != nil && h.exclude.MatchString(name) }

// ConsumerConfig says how a group reads.
type ConsumerConfig struct {
	// Group is the consumer group, whose members share the records. Default: consumerID, else
	// the app's id.
	Group string `yaml:"consumerGroup"`
	// ConsumerID is another word for consumerGroup, which comes first.
	ConsumerID string `yaml:"consumerID"`
	// InitialOffset is where a group starts that Kafka does not know: newest or oldest.
	InitialOffset string `yaml:"initialOffset" enum:"newest,oldest"`
	// RebalanceStrategy shares partitions out: range, sticky or roundrobin as Dapr does. All
	// members of a group must use the same.
	RebalanceStrategy string `yaml:"consumerGroupRebalanceStrategy" enum:"range,sticky,roundrobin,cooperative-sticky"`
	// SessionTimeout is after what time a member that is silent loses its partitions.
	SessionTimeout time.Duration `yaml:"sessionTimeout" unit:"s"`
	// HeartbeatInterval is how often a member shows that it lives.
	HeartbeatInterval time.Duration `yaml:"heartbeatInterval" unit:"s"`
	// FetchMin is how many bytes a broker waits for before it answers, half a second at most.
	FetchMin conf.ByteSize `yaml:"consumerFetchMin"`
	// FetchDefault bounds what is fetched of one partition at once.
	FetchDefault conf.ByteSize `yaml:"consumerFetchDefault"`
	// BufferSize is how many records of a partition may wait in memory.
	BufferSize int `yaml:"channelBufferSize"`
	Retry      RetryConfig
}

// RetryConfig is the pause before a record that the app did not handle is given to it again.
type RetryConfig struct {
	// Enabled is accepted: a record is given to the app until it is handled.
	Enabled *bool `yaml:"consumeRetryEnabled"`
	// Interval is the first pause.
	Interval time.Duration `yaml:"consumeRetryInterval" unit:"ms"`
	// Policy is constant for pauses of one length, exponential for growing ones.
	Policy string `yaml:"backOffPolicy" enum:"constant,exponential"`
	// Duration is the pause of the policy constant. Default: consumeRetryInterval.
	Duration time.Duration `yaml:"backOffDuration" unit:"ms"`
	// InitialInterval is the first pause of the policy exponential. Default: consumeRetryInterval.
	InitialInterval time.Duration `yaml:"backOffInitialInterval" unit:"ms"`
	// Multiplier is the factor between pauses.
	Multiplier float64 `yaml:"backOffMultiplier"`
	// RandomizationFactor is the part by which a pause may be longer or shorter.
	RandomizationFactor float64 `yaml:"backOffRandomizationFactor"`
	// MaxInterval bounds a pause.
	MaxInterval time.Duration `yaml:"backOffMaxInterval" unit:"ms"`
	// MaxRetries and MaxElapsedTime are accepted and have no effect: no record is passed over.
	MaxRetries     *int           `yaml:"backOffMaxRetries"`
	MaxElapsedTime *time.Duration `yaml:"backOffMaxElapsedTime" unit:"ms"`
}

func defaultConsumer() ConsumerConfig {
	return ConsumerConfig{InitialOffset: "newest", RebalanceStrategy: "range", SessionTimeout: 10 * time.Second, HeartbeatInterval: 3 * time.Second,
		FetchMin: 1, FetchDefault: conf.MiB, BufferSize: 256,
		Retry: RetryConfig{Interval: 100 * time.Millisecond, Policy: "exponential", Multiplier: 2, RandomizationFactor: 0.2, MaxInterval: 10 * time.Second}}
}

// Validate reports what cannot work.
func (c *ConsumerConfig) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, conf.Bad(key, format, args...)) }
	if c.SessionTimeout < time.Second || c.SessionTimeout > 30*time.Minute {
		bad("sessionTimeout", "%v is not between 1s and 30m", c.SessionTimeout)
	}
	if c.HeartbeatInterval < 10*time.Millisecond || c.HeartbeatInterval >= c.SessionTimeout {
		bad("heartbeatInterval", "%v is not between 10ms and sessionTimeout, %v", c.HeartbeatInterval, c.SessionTimeout)
	}
	const most = 1 << 30
	if c.FetchMin < 1 || c.FetchMin > most {
		bad("consumerFetchMin", "must be from 1 to %v", conf.ByteSize(most))
	}
	if c.FetchDefault < 1 || c.FetchDefault > most {
		bad("consumerFetchDefault", "must be from 1 to %v", conf.ByteSize(most))
	}
	if c.BufferSize < 0 || c.BufferSize > 1_000_000 {
		bad("channelBufferSize", "must be from 0 to 1000000")
	}
	return errors.Join(errs...)
}

// Validate reports what cannot work.
func (c *RetryConfig) Validate() error {
	var errs []error
	for key, d := range map[string]time.Duration{"consumeRetryInterval": c.Interval, "backOffDuration": c.Duration,
		"backOffInitialInterval": c.InitialInterval, "backOffMaxInterval": c.MaxInterval} {
		if d < 0 {
			errs = append(errs, conf.Bad(key, "must not be negative"))
		}
	}
	if c.Multiplier < 1 || c.Multiplier > 100 {
		errs = append(errs, conf.Bad("backOffMultiplier", "must be from 1 to 100"))
	}
	if c.RandomizationFactor < 0 || c.RandomizationFactor > 1 {
		errs = append(errs, conf.Bad("backOffRandomizationFactor", "must be from 0 to 1"))
	}
	return errors.Join(errs...)
}

func (c *ConsumerConfig) warn(log *slog.Logger) {
	if r := &c.Retry; r.Enabled != nil && !*r.Enabled {
		log.Warn("consumeRetryEnabled false has no effect: a record that the app did not handle is given to it again, never passed over")
	}
	if c.Retry.MaxRetries != nil && *c.Retry.MaxRetries >= 0 || c.Retry.MaxElapsedTime != nil && *c.Retry.MaxElapsedTime > 0 {
		log.Warn("backOffMaxRetries and backOffMaxElapsedTime have no effect: no record is passed over")
	}
}

// group is the consumer group's name.
func (c *ConsumerConfig) group(env block.Env) string {
	for _, name := range []string{c.Group, c.ConsumerID, env.AppID} {
		if name != "" {
			return name
		}
	}
	return ""
}

// leastPause keeps a record that fails at once from taking a whole CPU.
const leastPause = 10 * time.Millisecond

// pause is the time before attempt n (from 2) at a record.
func (c *RetryConfig) pause(n int) time.Duration {
	d := c.Interval
	if c.Policy == "constant" {
		if c.Duration > 0 {
			d = c.Duration
		}
		return max(d, leastPause)
	}
	if c.InitialInterval > 0 {
		d = c.InitialInterval
	}
	f := float64(max(d, leastPause))
	for range n - 2 {
		if f *= c.Multiplier; f >= float64(c.MaxInterval) {
			break
		}
	}
	f = min(f, max(float64(c.MaxInterval), float64(leastPause)))
	f *= 1 + c.RandomizationFactor*(2*rand.Float64()-1)
	return max(time.Duration(f), leastPause)
}

// checkTopic judges a topic's name by Kafka's rules.
func checkTopic(name string) error {
	if name == "." || name == ".." || len(name) > 249 || !topicForm.MatchString(name) {
		return fmt.Errorf("%q is no name of a topic; want up to 249 of letters, digits, '.', '_' and '-'", clip(name))
	}
	return nil
}

var topicForm = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// clip shortens text that is quoted in an error.
func clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}
