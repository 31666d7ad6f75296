package launch_test

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mecha-project/mecha/cmd/mecha/launch"
)

// adoptOrphans makes what falls off a killed run fall to the test, which reaps it; not every
// container has an init that does.
func adoptOrphans() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// startNode starts a fake embedded node as a sidecar does: in a session of its own, with no
// stream of ours, and marked.
func startNode() {
	cmd := exec.Command(self, "embedded")
	cmd.Env = append(os.Environ(), launch.EmbeddedNodeEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("node pid %d lingers\n", cmd.Process.Pid)
}

// fork starts processes that are hard to find again, and stays.
//
//   - double: a grandchild with its own session whose parent is gone
//   - marked: the same with the embedded node's mark, but another executable
func fork(how string) int {
	switch how {
	case "double":
		spawn("helper", "fork", "second")
		linger("app", false)
	case "second":
		spawn("helper", "stubborn")
	case "marked":
		cmd := exec.Command("sleep", "60")
		cmd.Env = append(os.Environ(), launch.EmbeddedNodeEnv+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Printf("marked pid %d lingers\n", cmd.Process.Pid)
		linger("app", false)
	}
	return 0
}

func spawn(args ...string) {
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		fmt.Println(err)
	}
}
