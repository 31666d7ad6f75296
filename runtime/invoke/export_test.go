package invoke

import "github.com/mecha-project/mecha/components/block"

// Avoided counts the instances of a name that are out of the rotation.
func (s *Service) Avoided(name block.Name) int {
	n := (*s.resolver.known.Load())[name].names
	kept := 0
	n.down.Range(func(any, any) bool { kept++; return true })
	if int(n.downs.Load()) != kept {
		return -1 // the two disagree: a defect of its own
	}
	return kept
}

// Known counts the names that are kept.
func (s *Service) Known() int { return len(*s.resolver.known.Load()) }
