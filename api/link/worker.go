package link

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/mecha-project/mecha/components/fault"
)

// maxParked is how many workers wait for the next stream. A worker keeps the stack its
// handlers grew: with 20 KiB deep handlers and 32 callers, a call costs 4–5 CPU-µs, and 8 with
// a goroutine each. The garbage collector shrinks stacks of workers that stay parked.
const maxParked = 64

// dispatch runs the handler of a stream whose head is complete. Only the reader calls it.
func (s *Session) dispatch(st *Stream) {
	s.running.Add(1)
	select {
	case s.work <- st:
	default:
		s.calls.Add(1)
		go s.serve(st)
	}
}

// serve is a worker: it runs handlers one after another and ends with the session, or when
// enough others wait.
func (s *Session) serve(st *Stream) {
	defer s.calls.Done()
	for {
		st.run()
		if s.parked.Add(1) > maxParked {
			s.parked.Add(-1)
			return
		}
		var ok bool
		st, ok = <-s.work
		s.parked.Add(-1)
		if !ok {
			return
		}
	}
}

// run calls the handler and ends what it left open. It is a worker's whole job.
func (st *Stream) run() {
	s := st.s
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Log.Error("link handler panicked", "target", s.peerName(), "err", fmt.Sprint(p), "stack", string(debug.Stack()))
			st.Reset(fault.Internal, "the handler failed")
		}
		st.done()
	}()
	s.cfg.Handler(st)
}

// done ends a handler's stream: no answer is an error, an unread request is stopped.
func (st *Stream) done() {
	s := st.s
	s.running.Add(-1)
	s.mu.Lock()
	s.inbound.held -= st.held
	st.held = 0
	live := s.streams[st.id] == st
	switch {
	case live && !st.sendEnded && !st.sendStopped:
		code, text := fault.Internal, "the handler returned without ending its answer"
		if st.call.Err() == context.DeadlineExceeded {
			code, text = fault.Deadline, "the time allowed ran out before the answer was complete"
		}
		st.resetLocked(fault.New(opStream, code, "%s", text), false)
	case live && !st.recvEnded && !st.recvStopped:
		st.stopLocked()
	}
	st.dropUnread()
	st.call.Cancel(context.Canceled)
	flush := s.claimFlush()
	s.mu.Unlock()
	s.flushIf(flush)
}
