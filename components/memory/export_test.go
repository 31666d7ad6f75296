package memory

// Held is how many locks are in memory, ended or not.
func Held(s *Locks) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

// KeyOrder is the order of keys of a scan.
type KeyOrder struct{ o *keyOrder }

// NewKeyOrder puts keys in order.
func NewKeyOrder(keys []string) KeyOrder { return KeyOrder{newKeyOrder(keys)} }

// Add puts in a key that is not there.
func (k KeyOrder) Add(key string) { k.o.add(key) }

// Remove takes one out.
func (k KeyOrder) Remove(key string) { k.o.remove(key) }

// From lists the keys from prefix on, or behind last.
func (k KeyOrder) From(prefix, last string, begun bool) (out []string) {
	k.o.from(prefix, last, begun, func(key string) bool { out = append(out, key); return true })
	return out
}
