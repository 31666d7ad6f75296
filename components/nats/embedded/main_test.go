package embedded_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/nats/embedded"
)

// The test binary is also the node: Connect starts os.Executable() with "embedded".
func TestMain(m *testing.M) {
	if os.Getenv("TEST_NODE_PANICS") != "" && os.Getenv(embedded.EnvNode) != "" {
		panic("this node was told to panic")
	}
	embedded.MainIfNode()
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("os/exec.(*Cmd).Wait")) // reaps a node as long as it lives
}
