package group

import (
	"testing"

	"github.com/mecha-project/mecha/components/block"
)

// TestListOlderThanAWrite: a list of all entries may have been made before a write whose answer came first. What it
// lacks is believed to be gone, until it is seen again.
func TestListOlderThanAWrite(t *testing.T) {
	m := newMachine("g", "me", 1000, 10)
	entry := block.LedgerEntry{Key: seatKey("g", "s"), Revision: 32,
		Value: encode(seatRecord{Version: recordVersion, Member: "other", Incarnation: "x", Joined: 1, Topics: []string{"t"}})}
	m.watch(nil, true, 1)
	m.observe(entry, 2)
	m.watch(nil, true, 3)
	if len(m.seats) != 0 {
		t.Error("a list without the entry did not remove it")
	}
	if m.observe(entry, 4); m.seats["s"].rev != 32 {
		t.Error("the entry was seen again and is ignored")
	}
	m.watch([]block.LedgerEntry{{Key: entry.Key, Revision: 33, Removed: true}}, false, 5)
	if m.observe(entry, 6); len(m.seats) != 0 {
		t.Error("an entry that was removed came back with old news")
	}
}
