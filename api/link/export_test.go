package link

import "sync"

// Stand makes a session's reader stand still until stop is called, as a stopped process would.
func (s *Session) Stand() (stop func()) {
	s.mu.Lock()
	return sync.OnceFunc(s.mu.Unlock)
}
