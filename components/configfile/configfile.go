// Package configfile is a configuration store that is a file: YAML or JSON, a value for each
// key. It is read again when it changes, and subscribers are told what differs.
//
// A version of the file that cannot be used, or no file at all, is reported and changes nothing:
// the last good one keeps serving. A file is read when it has come to rest, so that one that is
// being written is not taken for one that lost half its keys. Start reading at parse.go for the
// format, then here; source.go follows the file.
package configfile

import (
	"context"
	"maps"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

const doc = "Configuration from a YAML or JSON file of keys and values, followed when it changes."

// Backend lists the parts: a configuration store.
func Backend() block.Backend {
	return block.Backend{Name: "configfile", Doc: doc, Parts: []block.Part{
		block.ConfigurationPart("file", doc, DefaultConfig, New),
	}}
}

// Config configures the store.
type Config struct {
	// Path is the file, YAML or JSON. A relative path starts at the sidecar's working directory.
	Path string `yaml:"path" alias:"file" required:"true"`
}

// DefaultConfig is the configuration with nothing set.
func DefaultConfig() *Config { return &Config{} }

var _ block.Configuration = (*store)(nil)

// store serves the last good version of the file.
type store struct{ src *source }

// New opens the store. It touches no file: the first use does.
func New(env block.Env, c *Config) (block.Configuration, error) {
	if c.Path == "" {
		return nil, fault.New("configfile.New", fault.Invalid, "path is required: name the file with the settings")
	}
	return &store{newSource(env.Log, c.Path)}, nil
}

// Ping checks that there is a good version of the file to serve.
func (s *store) Ping(ctx context.Context) error {
	_, _, err := s.src.current(ctx, "configfile.Ping")
	return err
}

// Close stops following the file and ends subscriptions.
func (s *store) Close(context.Context) error { return s.src.close() }

// Get reads items; no keys means all. A file has no versions.
func (s *store) Get(ctx context.Context, keys []string, _ map[string]string) (map[string]block.ConfigItem, error) {
	values, _, err := s.src.current(ctx, "configfile.Get")
	if err != nil {
		return nil, err
	}
	out := map[string]block.ConfigItem{}
	for k, v := range chosen(values, keys) {
		out[k] = block.ConfigItem{Value: v}
	}
	return out, nil
}

// chosen are the values of the keys asked for; none asked for means all.
func chosen(values map[string]string, keys []string) map[string]string {
	if len(keys) == 0 {
		return values
	}
	out := make(map[string]string, len(keys))
	for _, k := range keys {
		if v, ok := values[k]; ok {
			out[k] = v
		}
	}
	return out
}

// Subscribe tells what differs between the versions of the file it sees.
func (s *store) Subscribe(ctx context.Context, keys []string, _ map[string]string, started func(), changed func(map[string]block.ConfigItem)) error {
	const op fault.Op = "configfile.Subscribe"
	all, next, err := s.src.current(ctx, op)
	if err != nil {
		return err
	}
	keys = append([]string(nil), keys...)
	told := chosen(all, keys)
	started()
	for {
		select {
		case <-ctx.Done():
			return fault.Wrap(op, fault.Canceled, ctx.Err())
		case <-s.src.done:
			return errClosed(op)
		case <-next:
		}
		if all, next, err = s.src.current(ctx, op); err != nil {
			return err
		}
		now := chosen(all, keys)
		if news := difference(told, now); len(news) > 0 {
			changed(news)
		}
		told = now
	}
}

// difference is what a subscriber is to be told; a removed key is an item without a value.
func difference(before, now map[string]string) map[string]block.ConfigItem {
	if maps.Equal(before, now) {
		return nil
	}
	out := map[string]block.ConfigItem{}
	for k, v := range now {
		if old, had := before[k]; !had || old != v {
			out[k] = block.ConfigItem{Value: v}
		}
	}
	for k := range before {
		if _, has := now[k]; !has {
			out[k] = block.ConfigItem{}
		}
	}
	return out
}
