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
	// AttrNotOffered is of a subtest for which the component lacks the ability, and says which.
	AttrNotOffered = "conformance-not-offered"
)

// suite begins a suite: every one calls it first.
func suite(t *testing.T, kind block.Kind) {
	t.Helper()
	t.Attr(AttrBlock, string(kind))
}

// notOffered says that there is nothing to check in this subtest, as the component lacks an ability.
// That is a finding about the component and no test left out: the subtest returns, it does not skip.
func notOffered(t *testing.T, why string) {
	t.Helper()
	t.Attr(AttrNotOffered, why)
}
