package lru

import (
	"fmt"
	"sync"
	"testing"
)

// TestEmptyShard has far fewer keys than shards, so a new key mostly lands where there is none
// to forget, and another shard must give one up.
func TestEmptyShard(t *testing.T) {
	m := New[int](manyKeys, nil)
	m.max = 3
	for i := range 1000 {
		key := fmt.Sprint(i)
		v := m.For(key)
		if m.Len() > 3 {
			t.Fatalf("Len() = %d after %d keys", m.Len(), i+1)
		}
		if m.For(key) != v {
			t.Fatalf("key %d was forgotten as soon as it came", i)
		}
	}
	if m.Len() != 3 {
		t.Errorf("Len() = %d, want 3", m.Len())
	}
}

func TestEmptyShardConcurrent(t *testing.T) {
	m := New[int](manyKeys, nil)
	m.max = 3
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				m.For(fmt.Sprint(g, "-", i))
			}
		})
	}
	wg.Wait()
	kept := 0
	for i := range m.parts {
		kept += len(m.parts[i].entries())
	}
	if kept != m.Len() || kept > 3 {
		t.Errorf("%d keys are kept, Len() = %d, want 3", kept, m.Len())
	}
}
