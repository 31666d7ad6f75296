package blocktest

import (
	"testing"

	"github.com/mecha-project/mecha/components/block"
)

// What the suites say of themselves in the output of `go test -json`, as attributes of the test
// that runs one. test/conformance/table makes its table of them.
const (
	// AttrBlock names the block whose suite runs in the test; its subtests are the suite's.
	AttrBlock = "conformance-block"
	// AttrBackend says what the suite runs on where that is not the backend in whose folder the
	// test is. The test that calls a suite sets it.
	AttrBackend = "conformance-backend"
)

// suite begins a suite: every one calls it first. A subtest of a suite that calls Skip says that
// the component does not offer what it checks.
func suite(t *testing.T, kind block.Kind) {
	t.Helper()
	t.Attr(AttrBlock, string(kind))
}
