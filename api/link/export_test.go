package link

import "sync"

// Stand makes a session's reader stand still until stop is called, as a stopped process would.
func (s *Session) Stand() (stop func()) {
	s.mu.Lock()
	return sync.OnceFunc(s.mu.Unlock)
}

// Known is the number of addresses a pool remembers.
func (p *Pool) Known() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.peers)
}
