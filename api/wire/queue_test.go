package wire_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/mecha-project/mecha/api/wire"
)

// TestQueue puts bytes in and takes them out in every way, beside a plain buffer.
func TestQueue(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var q wire.Queue
	var want bytes.Buffer
	check := func(how string, got []byte) {
		t.Helper()
		if !bytes.Equal(got, want.Next(len(got))) {
			t.Fatalf("%s gave other bytes", how)
		}
	}
	for range 2000 {
		p := make([]byte, rnd.IntN(1+rnd.IntN(100<<10)))
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		switch rnd.IntN(6) {
		case 0, 1:
			q.Add(p)
			want.Write(p)
		case 2:
			if !q.Pack(p) {
				c := wire.NewChunk(len(p))
				c.W = copy(c.B, p)
				q.Push(c)
			}
			want.Write(p)
		case 3:
			check("Read", p[:q.Read(p)])
		case 4:
			if c := q.Pop(); c != nil {
				check("Pop", c.Bytes())
				c.Free()
			}
		case 5:
			if rnd.IntN(4) > 0 {
				break
			}
			if c := q.PopAll(); c != nil {
				check("PopAll", c.Bytes())
				c.Free()
			}
			if !q.Empty() || want.Len() > 0 {
				t.Fatal("PopAll left something")
			}
		}
		if q.Size() != want.Len() {
			t.Fatalf("Size is %d, want %d", q.Size(), want.Len())
		}
		if want.Len() > 256<<10 {
			if n := q.Drop(); n != want.Len() || !q.Empty() || q.Size() != 0 {
				t.Fatalf("Drop said %d of %d", n, want.Len())
			}
			want.Reset()
		}
	}
}
