package nats_test

import (
	"os"
	"path/filepath"
)

func limitNode() {}

// unlocked tells that no node serves dir: its files can be removed.
func unlocked(dir string) bool {
	err := os.Remove(filepath.Join(dir, "lock"))
	return err == nil || os.IsNotExist(err)
}
