//go:build unix

package sdk

import (
	"fmt"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/mecha-project/mecha/test/harness"
)

// TestCrypto walks the SDKs that have the cryptography API through it, beside one sidecar. The keys,
// and the document that each opens, stand in the tests of runtime/crypto. An empty document is not
// tried: the SDKs send no message at all for it.
func TestCrypto(t *testing.T) {
	t.Parallel()
	made := filepath.Join(repository(t), "runtime", "crypto", "testdata")
	s := harness.NewMesh(t).Start(harness.Options{AppID: "crypto", Files: map[string]string{
		"vault.yaml": component("vault", "crypto.dapr.localstorage") + fmt.Sprintf("  metadata:\n  - {name: path, value: %q}\n", filepath.Join(made, "keys"))}})
	s.WaitOutbound()
	env := []string{"DAPR_HTTP_PORT=" + strconv.Itoa(s.HTTP), "DAPR_GRPC_PORT=" + strconv.Itoa(s.GRPC), "CRYPTO_DOCUMENT=" + filepath.Join(made, "two-segments.enc")}
	steps := map[string]int{"go": 10, "js": 13, "python": 11} // the Java SDK in use has no such API
	for _, l := range languages {
		if steps[l.name] == 0 {
			continue
		}
		t.Run(l.name, func(t *testing.T) {
			l.fewest = map[string]int{"crypto": steps[l.name]}
			l.run(t, prepare(t, l.name), "crypto", env)
		})
	}
}
