package main

import (
	"os"

	"github.com/mecha-project/mecha/cmd/mecha/launch"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// implicitComponents are those that exist without a resource. Only `mecha run` asks for them,
// with a data directory for the embedded node; a sidecar started by itself has what its
// resources say and nothing else. Names are the ones people know from `dapr init`.
func implicitComponents() []catalog.Spec {
	if os.Getenv(launch.ImplicitEmbeddedEnv) == "" {
		return nil
	}
	items := []conf.Item{}
	return []catalog.Spec{
		{Name: implicitNames(call.State)[0], Type: "state.embedded", Version: "v1", Items: items},
		{Name: implicitNames(call.Publish)[0], Type: "pubsub.embedded", Version: "v1", Items: items},
		{Name: implicitNames(call.Lock)[0], Type: "lock.embedded", Version: "v1", Items: items},
		{Name: implicitNames(call.Config)[0], Type: "configuration.embedded", Version: "v1", Items: items},
		{Name: implicitNames(call.Cache)[0], Type: "cache.embedded", Version: "v1", Items: items},
	}
}

// implicitNames are the names of the components that `mecha run` may add, by kind of call.
func implicitNames(kind call.Kind) []string {
	switch kind {
	case call.State:
		return []string{"statestore"}
	case call.Publish:
		return []string{"pubsub"}
	case call.Lock:
		return []string{"lockstore"}
	case call.Config:
		return []string{"configstore"}
	case call.Cache:
		return []string{"cache"}
	}
	return nil
}
