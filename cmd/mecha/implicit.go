package main

import (
	"os"

	"github.com/mecha-project/mecha/cmd/mecha/launch"
	"github.com/mecha-project/mecha/components/conf"
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
		{Name: "statestore", Type: "state.embedded", Version: "v1", Items: items},
		{Name: "pubsub", Type: "pubsub.embedded", Version: "v1", Items: items},
	}
}
