// Command component is a pluggable component for tests: one process that serves state, messages,
// secrets and bindings on a Unix socket, with the protocol's own types, from memory. Like a real
// one it forgets everything with its process, what Init told it first of all.
package main

import (
	"flag"
	"log"
	"net"
	"os"
	"strings"

	proto "github.com/dapr/dapr/pkg/proto/components/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection"
)

func main() {
	socket := flag.String("socket", "", "path of the socket")
	features := flag.String("features", "ETAG,TTL,TRANSACTIONAL", "what the state store says it can do")
	serve := flag.String("serve", "state,tx,max,pubsub,secrets,input,output", "services")
	bulk := flag.Bool("bulk", true, "has bulk calls")
	maxOps := flag.Int64("max", 0, "largest transaction; 0 is no limit")
	flag.Parse()
	_ = os.Remove(*socket) // of a process that was killed
	l, err := net.Listen("unix", *socket)
	if err != nil {
		log.Fatal(err)
	}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	c := &component{features: strings.Split(*features, ","), bulk: *bulk, maxOps: *maxOps, instances: map[string]*instance{}}
	for _, what := range strings.Split(*serve, ",") {
		switch what {
		case "state":
			proto.RegisterStateStoreServer(s, stateServer{component: c})
		case "tx":
			proto.RegisterTransactionalStateStoreServer(s, txServer{component: c})
		case "max":
			proto.RegisterTransactionalStoreMultiMaxSizeServer(s, maxServer{component: c})
		case "pubsub":
			proto.RegisterPubSubServer(s, pubsubServer{component: c})
		case "secrets":
			proto.RegisterSecretStoreServer(s, secretServer{component: c})
		case "input":
			proto.RegisterInputBindingServer(s, inputServer{component: c})
		case "output":
			proto.RegisterOutputBindingServer(s, outputServer{component: c})
		}
	}
	reflection.Register(s)
	log.Println("serving", *serve)
	log.Fatal(s.Serve(l))
}
