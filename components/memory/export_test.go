package memory

// Held is how many locks are in memory, ended or not.
func Held(s *Locks) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}
