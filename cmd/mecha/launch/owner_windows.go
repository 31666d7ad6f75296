package launch

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/windows"
)

// jobs is the owner on Windows: a job object per process, which the kernel kills with
// everything in it when the last handle, ours, is closed. No guard is needed.
type jobs struct {
	mu  sync.Mutex // guards job
	job map[*process]windows.Handle
}

func newOwner([]*process) (owner, error) { return &jobs{job: map[*process]windows.Handle{}}, nil }

// newJob makes a job that dies with us. The sidecar may let the embedded node break away.
func newJob(breakaway bool) (windows.Handle, error) {
	h, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return 0, err
	}
	info := jobLimits(breakaway)
	if err := setJobLimits(h, &info); err != nil {
		windows.CloseHandle(h)
		return 0, err
	}
	return h, nil
}

func (j *jobs) start(p *process) error {
	h, err := newJob(!p.app)
	if err != nil {
		return fmt.Errorf("make a job object for %s: %w", p.name, err)
	}
	cmd := exec.Command(p.path, p.args...)
	cmd.Dir, cmd.Env = p.dir, p.env
	cmd.Stdout, cmd.Stderr = p.out.writes[0], p.out.writes[1]
	if p.stdin != nil {
		cmd.Stdin = p.stdin
	}
	// A group of its own: Ctrl-C reaches us alone, and Ctrl-Break can be sent to it.
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP}
	if err := cmd.Start(); err != nil {
		windows.CloseHandle(h)
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.pid = cmd.Process.Pid
	if err := assign(h, p.pid); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		windows.CloseHandle(h)
		return fmt.Errorf("put %s into its job object: %w", p.name, err)
	}
	j.mu.Lock()
	j.job[p] = h
	j.mu.Unlock()
	go func() {
		_ = cmd.Wait() // the state tells more than the error
		p.exit = exitStatus{code: cmd.ProcessState.ExitCode()}
		close(p.done)
	}()
	return nil
}

func assign(job windows.Handle, pid int) error {
	const access = windows.PROCESS_SET_QUOTA | windows.PROCESS_TERMINATE
	h, err := windows.OpenProcess(access, false, uint32(pid))
	if err != nil {
		return err
	}
	defer windows.CloseHandle(h)
	return windows.AssignProcessToJobObject(job, h)
}

func (j *jobs) stop(p *process, grace time.Duration) {
	_ = windows.GenerateConsoleCtrlEvent(windows.CTRL_BREAK_EVENT, uint32(p.pid))
	select {
	case <-p.done:
	case <-time.After(grace):
	}
	j.end(p)
	<-p.done
}

// end kills what is left in the job of p.
func (j *jobs) end(p *process) {
	j.mu.Lock()
	h := j.job[p]
	delete(j.job, p)
	j.mu.Unlock()
	if h != 0 {
		_ = windows.TerminateJobObject(h, 137)
		windows.CloseHandle(h)
	}
}

func (j *jobs) kill() {
	j.mu.Lock()
	ps := make([]*process, 0, len(j.job))
	for p := range j.job {
		ps = append(ps, p)
	}
	j.mu.Unlock()
	for _, p := range ps {
		j.end(p)
	}
}

func (j *jobs) lost() <-chan struct{} { return nil }

func (j *jobs) close() { j.kill() }

// GuardMain has no work on Windows.
func GuardMain() int {
	os.Stderr.WriteString("mecha __guard is not used on Windows\n")
	return 2
}

func terminalInput(f *os.File) *os.File { return f }

func stopSignals() []os.Signal { return []os.Signal{os.Interrupt, syscall.SIGTERM} }
