package launch

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

// owner starts the processes of a run and answers for their end, whatever becomes of
// `mecha run`. Its methods are safe for concurrent use.
type owner interface {
	// start starts p, one of the processes the owner was made with, and sets p.pid.
	start(p *process) error
	// stop asks p and what shares its process group to end, and returns when they have. What
	// is left after grace is killed. Called once for each process.
	stop(p *process, grace time.Duration)
	// kill kills everything at once.
	kill()
	// lost is closed when the owner can no longer do its duty.
	lost() <-chan struct{}
	// close ends everything that is left, the embedded node excepted.
	close()
}

// orphanGrace is how long processes that nobody waits for may take to end: what an app left
// behind, and everything once `mecha run` is gone.
const orphanGrace = 800 * time.Millisecond

// sweepLimit bounds the killing that follows: a process that stays after that long cannot be
// killed at all (it hangs in the kernel or belongs to another user).
const sweepLimit = 5 * time.Second

// process is an app or a sidecar.
type process struct {
	name  string // for messages: `app "x"`
	app   bool   // an app, not a sidecar
	path  string
	args  []string // without the program itself
	env   []string
	dir   string
	stdin *os.File // nil means empty
	out   *output

	pid  int           // set by start
	exit exitStatus    // valid once done is closed
	done chan struct{} // closed when the process has ended
}

// exitStatus is how a process ended.
type exitStatus struct {
	code   int
	signal syscall.Signal // zero if it ended by itself
}

// shellCode is the exit code as a shell gives it: 128+n for a signal.
func (e exitStatus) shellCode() int {
	if e.signal != 0 {
		return 128 + int(e.signal)
	}
	return e.code
}

// endedAsAsked says whether this is a good end for a process that was sent SIGTERM: dying of
// it is, as is the exit code that stands for dying of it.
func (e exitStatus) endedAsAsked() bool {
	code := e.shellCode()
	return code == 0 || code == 128+int(syscall.SIGTERM)
}

func (e exitStatus) String() string {
	if e.signal != 0 {
		return fmt.Sprintf("was ended by signal %d (%s)", int(e.signal), e.signal)
	}
	return fmt.Sprintf("exited with code %d", e.code)
}
