// Package pluggable speaks to components that run as processes of their own: Dapr's component
// protocol, gRPC over a Unix socket. What a socket serves is asked by gRPC reflection; the
// component type is the block and the socket's file name without extension ("state.stock" for
// stock.sock).
//
// Start reading at Discover, which finds sockets, then instance.go, which holds the connection of
// one component and everything about a process that comes and goes. Each block has a file.
//
// There is no Backend here: which types exist is known only at run time. The finder is handed to
// block.Set as its fallback.
package pluggable

import (
	"slices"
	"strings"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
)

// Names of the protocol's services.
const (
	protocol       = "dapr.proto.components.v1."
	serviceState   = protocol + "StateStore"
	serviceTx      = protocol + "TransactionalStateStore"
	serviceMaxSize = protocol + "TransactionalStoreMultiMaxSize"
	servicePubSub  = protocol + "PubSub"
	serviceSecret  = protocol + "SecretStore"
	serviceInput   = protocol + "InputBinding"
	serviceOutput  = protocol + "OutputBinding"
)

// Config is the metadata of a component, which only the process behind the socket understands.
type Config struct {
	properties map[string]string
}

// DecodeItems takes every entry as it is written; two of one name are an error.
func (c *Config) DecodeItems(items []conf.Item) conf.Findings {
	var out conf.Findings
	c.properties = make(map[string]string, len(items))
	for _, it := range items {
		if _, dup := c.properties[it.Name]; dup || it.Name == "" {
			msg := "given twice; keep one"
			if it.Name == "" {
				msg = "an entry has no name"
			}
			out = append(out, conf.Finding{File: it.File, Line: it.Line, Key: it.Name, Severity: conf.Error, Msg: msg})
			continue
		}
		c.properties[it.Name] = it.Value
	}
	return out
}

// String says nothing: values may be secrets.
func (c *Config) String() string { return "metadata of a pluggable component" }

// GoString is String, for %#v.
func (c *Config) GoString() string { return c.String() }

// property is an entry's value, whatever the case of its name; "" when there is none.
func (c *Config) property(name string) string {
	for k, v := range c.properties {
		if strings.EqualFold(k, name) {
			return v
		}
	}
	return ""
}

func defaults() *Config { return &Config{} }

// part is what a socket with these services offers of a block; false when that is nothing.
func part(kind block.Kind, name, socket string, services []string) (block.Part, bool) {
	has := func(s string) bool { return slices.Contains(services, s) }
	const doc = "a component in a process of its own"
	switch {
	case kind == block.KindState && has(serviceState):
		return block.StatePart(name, doc, defaults, func(env block.Env, c *Config) (block.State, error) {
			return openState(env, socket, c, has(serviceTx), has(serviceMaxSize)), nil
		}), true
	case kind == block.KindPubSub && has(servicePubSub):
		return block.PubSubPart(name, doc, defaults, func(env block.Env, c *Config) (block.PubSub, error) {
			return openPubSub(env, socket, c), nil
		}), true
	case kind == block.KindSecret && has(serviceSecret):
		return block.SecretPart(name, doc, defaults, func(env block.Env, c *Config) (block.Secret, error) {
			return openSecret(env, socket, c), nil
		}), true
	case kind == block.KindBinding && (has(serviceInput) || has(serviceOutput)):
		return block.BindingPart(name, doc, defaults, func(env block.Env, c *Config) (block.Component, error) {
			return openBinding(env, socket, c, has(serviceInput), has(serviceOutput)), nil
		}), true
	}
	return block.Part{}, false
}
