package kubernetes

import (
	"testing"

	"github.com/mecha-project/mecha/components/block"
)

// Limit lowers what one GetAll of a store reads, in bytes.
func Limit(s block.Secret, most int) { s.(*store).most = most }

// SetServiceAccount puts a pod's credentials into another folder for one test.
func SetServiceAccount(t testing.TB, dir string) {
	was := serviceAccount
	serviceAccount = dir
	t.Cleanup(func() { serviceAccount = was })
}
