//go:build unix

package nats_test

import (
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/mecha-project/mecha/components/nats/embedded"
)

// envFileSize makes a node run into a limit of file size, which to its store is a full disk.
const envFileSize = "TEST_NODE_FILE_SIZE"

func limitNode() {
	n, err := strconv.ParseUint(os.Getenv(envFileSize), 10, 62)
	if os.Getenv(embedded.EnvNode) == "" || err != nil {
		return
	}
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
		panic(err)
	}
}

// unlocked tells that no node serves dir: nobody holds its lock.
func unlocked(dir string) bool {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return true
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}
