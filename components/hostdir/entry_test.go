package hostdir

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/components/block"
)

func FuzzParseEntry(f *testing.F) {
	good, err := json.Marshal(newEntry(block.Instance{ID: "a", App: "b", Namespace: "c", Address: "h:1",
		Labels: map[string]string{"k": "v"}, Weight: 2}, 5, 6))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":1,"id":"a","app":"b","address":"h:0"}`))
	f.Add([]byte(`{} {}`))
	f.Add([]byte("\x00\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := parseEntry(data)
		if err != nil {
			if !reflect.DeepEqual(e, entry{}) {
				t.Errorf("a refused entry was returned: %+v", e)
			}
			return
		}
		if err := e.instance().Validate(); err != nil {
			t.Errorf("accepted an invalid instance: %v", err)
		}
		again, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		back, err := parseEntry(again)
		if err != nil || !reflect.DeepEqual(back.instance().Name(), e.instance().Name()) || back.Address != e.Address {
			t.Errorf("round trip of %s = %+v, %v", data, back, err)
		}
	})
}

// The largest valid instance fits the bound on a file, whatever JSON escapes.
func TestLargestEntryFits(t *testing.T) {
	wide := strings.Repeat("<", 200)
	in := block.Instance{ID: wide, App: wide, Namespace: wide, Protocol: wide, Address: "h:1",
		Labels: map[string]string{"k": strings.Repeat("<", 1023)}}
	if err := in.Validate(); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(newEntry(in, 1, 2))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseEntry(data); err != nil || len(data) > maxEntryBytes/2 {
		t.Errorf("an entry of %d bytes: %v; want at most half of %d", len(data), err, maxEntryBytes)
	}
}
