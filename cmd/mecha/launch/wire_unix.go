//go:build unix

package launch

import "syscall"

// The guard and `mecha run` are the same executable and talk in JSON objects: orders on the
// guard's descriptor 3, reports on its descriptor 4.
const (
	ordersFD   = 3
	reportsFD  = 4
	firstOutFD = 5
)

type verb string

const (
	orderStart verb = "start"
	orderStop  verb = "stop"
	orderKill  verb = "kill"

	reportStarted verb = "started"
	reportFailed  verb = "failed"
	reportExited  verb = "exited"
	reportStopped verb = "stopped"
)

// order is what `mecha run` wants. Strings that come from outside are bytes, for JSON would
// change those that are not UTF-8.
type order struct {
	Verb  verb     `json:"verb"`
	Key   int      `json:"key"`
	App   bool     `json:"app,omitempty"`
	Path  []byte   `json:"path,omitempty"`
	Args  [][]byte `json:"args,omitempty"`
	Env   [][]byte `json:"env,omitempty"`
	Dir   []byte   `json:"dir,omitempty"`
	Files [3]int   `json:"files"` // descriptors in the guard; zero means none
	Grace int64    `json:"grace,omitempty"`
}

// report is what the guard has seen.
type report struct {
	Verb   verb           `json:"verb"`
	Key    int            `json:"key"`
	Pid    int            `json:"pid,omitempty"`
	Code   int            `json:"code,omitempty"`
	Signal syscall.Signal `json:"signal,omitempty"`
	Err    string         `json:"err,omitempty"`
}

func toBytes(ss []string) [][]byte {
	out := make([][]byte, len(ss))
	for i, s := range ss {
		out[i] = []byte(s)
	}
	return out
}

func toStrings(bs [][]byte) []string {
	out := make([]string, len(bs))
	for i, b := range bs {
		out[i] = string(b)
	}
	return out
}
