package seal_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/memory"
	"github.com/mecha-project/mecha/runtime/catalog/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	key128 = "000102030405060708090a0b0c0d0e0f"
	key192 = "000102030405060708090a0b0c0d0e0f1011121314151617"
	key256 = "000102030405060708090A0B0C0D0E0F101112131415161718191a1b1c1d1e1f"
)

func entry(name, secret, value string) conf.Item {
	return conf.Item{Name: name, Value: value, Secret: true, SecretName: secret, File: "s.yaml", Line: 9}
}

func primary(secret, value string) conf.Item { return entry("primaryEncryptionKey", secret, value) }
func secondary(secret, value string) conf.Item {
	return entry("secondaryEncryptionKey", secret, value)
}

func take(t testing.TB, items ...conf.Item) *seal.Keys {
	t.Helper()
	_, k, err := seal.Take(items)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func open(t testing.TB) block.State {
	t.Helper()
	part := memory.Backend().Parts[0]
	c, err := part.Open(block.Env{Log: slog.New(slog.DiscardHandler), AppID: "app", Component: "s"}, part.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c.(block.State)
}

// An encrypted store is a store like any other.
func TestConformance(t *testing.T) {
	blocktest.State(t, func(t *testing.T) block.State { return take(t, primary("a", key256)).Wrap(open(t)) })
}

func TestTake(t *testing.T) {
	other := conf.Item{Name: "host", Value: "h"}
	rest, k, err := seal.Take([]conf.Item{other, primary("a", key128), entry("SECONDARYENCRYPTIONKEY", "b", key192)})
	if err != nil || k == nil || len(rest) != 1 || rest[0] != other || k.Name() != "a" {
		t.Errorf("Take: %v, %v, %v; want the other entry and both keys", rest, k, err)
	}
	rest, k, err = seal.Take([]conf.Item{other})
	if err != nil || k != nil || len(rest) != 1 {
		t.Errorf("without keys: %v, %v, %v", rest, k, err)
	}
	if s := open(t); (*seal.Keys)(nil).Wrap(s) != s {
		t.Error("without keys the store is wrapped all the same")
	}
	for name, tt := range map[string]struct {
		items []conf.Item
		want  string
	}{
		"a literal":           {[]conf.Item{primary("", key128)}, "must come from a secret store"},
		"no hexadecimal":      {[]conf.Item{primary("a", "zz"+key128[2:])}, "not hexadecimal"},
		"too short":           {[]conf.Item{primary("a", key128[2:])}, "has 15 bytes, want 16, 24 or 32"},
		"empty":               {[]conf.Item{primary("a", "")}, "has 0 bytes"},
		"given twice":         {[]conf.Item{primary("a", key128), primary("a", key128)}, "given twice"},
		"secondary only":      {[]conf.Item{secondary("a", key128)}, "primaryEncryptionKey"},
		"a literal secondary": {[]conf.Item{primary("a", key128), entry("secondaryEncryptionKey", "", key128)}, "must come from a secret store"},
	} {
		t.Run(name, func(t *testing.T) {
			_, k, err := seal.Take(tt.items)
			if k != nil || fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v (%v), want %q", err, fault.Of(err), tt.want)
			}
			if strings.Contains(err.Error(), "0102030405") {
				t.Errorf("the key is in the error: %v", err)
			}
			if !strings.Contains(err.Error(), "s.yaml:9: error: ") {
				t.Errorf("the error does not say where: %v", err)
			}
		})
	}
}

// daprs opens a value as the documentation of Dapr's form says, without any code of ours.
func daprs(t testing.TB, stored []byte, id, key string) []byte {
	t.Helper()
	text, ok := strings.CutSuffix(string(stored), "||"+id)
	if !ok {
		t.Fatalf("%q does not end with the key's name %s", stored, id)
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	value, err := gcm(t, key).Open(nil, raw[:12], raw[12:], nil)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func gcm(t testing.TB, key string) cipher.AEAD {
	t.Helper()
	raw, err := hex.DecodeString(key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := aes.NewCipher(raw)
	if err != nil {
		t.Fatal(err)
	}
	a, err := cipher.NewGCM(b)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// dapr stores a value in Dapr's form.
func dapr(t testing.TB, value, id, key string) []byte {
	nonce := []byte("twelve bytes")
	return []byte(base64.StdEncoding.EncodeToString(gcm(t, key).Seal(nonce, nonce, []byte(value), nil)) + "||" + id)
}

func TestDaprsForm(t *testing.T) {
	ctx, inner := t.Context(), open(t)
	for _, key := range []string{key128, key192, key256} {
		s := take(t, primary("the|key", key)).Wrap(inner)
		for _, value := range []string{"", "null", `{"a": 1.0,  "b":[1e6]}`, "\x00\xff bytes", strings.Repeat("long ", 20000)} {
			if err := s.Set(ctx, block.StateWrite{Key: "k", Value: []byte(value)}); err != nil {
				t.Fatal(err)
			}
			raw, err := inner.Get(ctx, "k", block.StateRead{})
			if err != nil {
				t.Fatal(err)
			}
			if got := daprs(t, raw.Value, "the|key", key); string(got) != value {
				t.Errorf("stored as %q, want %q", got, value)
			}
			if value != "" && bytes.Contains(raw.Value, []byte(value)) {
				t.Errorf("%q is stored in clear", value)
			}
			if item, err := s.Get(ctx, "k", block.StateRead{}); err != nil || string(item.Value) != value || !item.Exists || item.ETag != raw.ETag {
				t.Errorf("read %+v, %v; want %q", item, err, value)
			}
		}
		if err := inner.Set(ctx, block.StateWrite{Key: "d", Value: dapr(t, "by dapr", "the|key", key)}); err != nil {
			t.Fatal(err)
		}
		if item, err := s.Get(ctx, "d", block.StateRead{}); err != nil || string(item.Value) != "by dapr" {
			t.Errorf("a value of Dapr's: %q, %v", item.Value, err)
		}
	}
	// The same value is never stored alike.
	s := take(t, primary("a", key128)).Wrap(inner)
	seen := map[string]bool{}
	for range 10 {
		if err := s.Set(ctx, block.StateWrite{Key: "k", Value: []byte("same")}); err != nil {
			t.Fatal(err)
		}
		raw, _ := inner.Get(ctx, "k", block.StateRead{})
		seen[string(raw.Value)] = true
	}
	if len(seen) != 10 {
		t.Errorf("one value written 10 times is stored in %d forms", len(seen))
	}
}

func TestRotation(t *testing.T) {
	ctx, inner := t.Context(), open(t)
	write := func(s block.State, key string) {
		t.Helper()
		if err := s.Set(ctx, block.StateWrite{Key: key, Value: []byte("v-" + key)}); err != nil {
			t.Fatal(err)
		}
	}
	read := func(s block.State, key string) error {
		t.Helper()
		item, err := s.Get(ctx, key, block.StateRead{})
		if err == nil && string(item.Value) != "v-"+key {
			t.Errorf("%s = %q", key, item.Value)
		}
		return err
	}
	before := take(t, primary("old", key128)).Wrap(inner)
	write(before, "a")
	during := take(t, primary("new", key256), secondary("old", key128)).Wrap(inner)
	write(during, "b")
	for _, key := range []string{"a", "b"} {
		if err := read(during, key); err != nil {
			t.Errorf("during the change: %v", err)
		}
	}
	raw, _ := inner.Get(ctx, "b", block.StateRead{})
	daprs(t, raw.Value, "new", key256) // written with the primary
	after := take(t, primary("new", key256)).Wrap(inner)
	if err := read(after, "b"); err != nil {
		t.Error(err)
	}
	if err := read(after, "a"); fault.Of(err) != fault.Lost || !strings.Contains(err.Error(), "keep the old key as secondaryEncryptionKey") {
		t.Errorf("a value of a key that is gone: %v", err)
	}
	// Both keys in one secret have one name.
	one := take(t, primary("s", key128)).Wrap(inner)
	write(one, "c")
	both := take(t, primary("s", key256), secondary("s", key128)).Wrap(inner)
	write(both, "d")
	for _, key := range []string{"c", "d"} {
		if err := read(both, key); err != nil {
			t.Errorf("two keys in one secret: %v", err)
		}
	}
}

// What cannot be opened is an error that shows nothing, of one item among several.
func TestNotOpened(t *testing.T) {
	ctx, inner := t.Context(), open(t)
	s := take(t, primary("a", key128)).Wrap(inner)
	damaged := dapr(t, "private", "a", key128)
	damaged[20] ^= 1
	stored := map[string][]byte{
		"clear":     []byte(`{"card":"private"}`),
		"bars":      []byte("private||private"),
		"named":     []byte("private||a"),
		"empty":     nil,
		"short":     []byte("cHJpdmF0ZQ==||a"),
		"another":   dapr(t, "private", "b", key128),
		"wrong key": dapr(t, "private", "a", key256),
		"damaged":   damaged,
	}
	keys := []string{"fine", "missing"}
	for key, value := range stored {
		keys = append(keys, key)
		if err := inner.Set(ctx, block.StateWrite{Key: key, Value: value}); err != nil {
			t.Fatal(err)
		}
		item, err := s.Get(ctx, key, block.StateRead{})
		if fault.Of(err) != fault.Lost || strings.Contains(err.Error(), "private") || strings.Contains(err.Error(), "cHJ") || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v (%v)", key, err, fault.Of(err))
		}
		if item.Exists || len(item.Value) > 0 || item.ETag != "" {
			t.Errorf("%s: the item has %+v beside an error", key, item)
		}
	}
	if err := s.Set(ctx, block.StateWrite{Key: "fine", Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	items, err := s.(block.StateBatch).GetMany(ctx, keys, block.StateRead{})
	if err != nil {
		t.Fatal(err)
	}
	for i, item := range items {
		switch item.Key {
		case "fine":
			if string(item.Value) != "v" || item.Err != nil {
				t.Errorf("the good one among bad ones: %+v", item)
			}
		case "missing":
			if item.Exists || item.Err != nil {
				t.Errorf("the missing one: %+v", item)
			}
		default:
			if item.Key != keys[i] || fault.Of(item.Err) != fault.Lost || item.Exists || len(item.Value) > 0 || strings.Contains(item.Err.Error(), "private") {
				t.Errorf("%s: %+v", keys[i], item)
			}
		}
	}
	// It can be removed and written anew.
	if err := s.Delete(ctx, block.StateDelete{Key: "clear"}); err != nil {
		t.Error(err)
	}
	if err := s.Set(ctx, block.StateWrite{Key: "bars", Value: []byte("new")}); err != nil {
		t.Error(err)
	}
}

// What the caller passes stays as it is, for it may be sent again.
func TestCallersSlices(t *testing.T) {
	s := take(t, primary("a", key128)).Wrap(open(t))
	ws := []block.StateWrite{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte("2")}}
	ops := []block.StateOp{{StateWrite: ws[0]}, {Delete: true, StateWrite: block.StateWrite{Key: "b"}}}
	if errs := s.(block.StateBatch).SetMany(t.Context(), ws); errs != nil {
		t.Fatal(errs)
	}
	if err := s.(block.StateTx).Transact(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
	if string(ws[0].Value) != "1" || string(ws[1].Value) != "2" || string(ops[0].Value) != "1" || ops[1].Value != nil {
		t.Errorf("the caller's values have changed: %v %v", ws, ops)
	}
}

// looking is a store with queries, that notes what is written as JSON.
type looking struct {
	block.State
	json bool
}

func (l *looking) Queries() bool { return true }
func (l *looking) Query(context.Context, block.StateSearch) (block.StateFound, error) {
	return block.StateFound{}, nil
}
func (l *looking) Set(ctx context.Context, w block.StateWrite) error {
	l.json = w.JSON
	return l.State.Set(ctx, w)
}

// There is nothing to look into.
func TestNoQueries(t *testing.T) {
	inner := &looking{State: open(t)}
	s := take(t, primary("a", key128)).Wrap(inner)
	if _, ok := s.(block.StateQuery); ok {
		t.Error("an encrypted store offers queries")
	}
	if err := s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("{}"), JSON: true}); err != nil || inner.json {
		t.Errorf("what is encrypted is called JSON: %v, %v", inner.json, err)
	}
}

// Stores with every set of abilities.
type (
	plain struct{ block.State }
	batch struct{ block.StateBatch }
	tx    struct{ block.StateTx }
	ttl   struct{ block.StateTTL }
	late  struct{}
)

func (late) Features() []string { return []string{"ETAG", "QUERY_API", "TTL"} }

func TestOffers(t *testing.T) {
	inner := open(t)
	k := take(t, primary("a", key128))
	b, x, e := batch{inner.(block.StateBatch)}, tx{inner.(block.StateTx)}, ttl{inner.(block.StateTTL)}
	p := plain{inner}
	stores := map[string]block.State{
		"": p,
		"b": struct {
			plain
			batch
		}{p, b},
		"x": struct {
			plain
			tx
		}{p, x},
		"e": struct {
			plain
			ttl
		}{p, e},
		"l": struct {
			plain
			late
		}{p, late{}},
		"bx": struct {
			plain
			batch
			tx
		}{p, b, x},
		"be": struct {
			plain
			batch
			ttl
		}{p, b, e},
		"bl": struct {
			plain
			batch
			late
		}{p, b, late{}},
		"xe": struct {
			plain
			tx
			ttl
		}{p, x, e},
		"xl": struct {
			plain
			tx
			late
		}{p, x, late{}},
		"el": struct {
			plain
			ttl
			late
		}{p, e, late{}},
		"bxe": struct {
			plain
			batch
			tx
			ttl
		}{p, b, x, e},
		"bxl": struct {
			plain
			batch
			tx
			late
		}{p, b, x, late{}},
		"bel": struct {
			plain
			batch
			ttl
			late
		}{p, b, e, late{}},
		"xel": struct {
			plain
			tx
			ttl
			late
		}{p, x, e, late{}},
		"bxel": struct {
			plain
			batch
			tx
			ttl
			late
		}{p, b, x, e, late{}},
	}
	if len(stores) != 16 {
		t.Fatalf("%d sets of abilities, want 16", len(stores))
	}
	abilities := func(s block.State) (out string) {
		if _, ok := block.As[block.StateBatch](s); ok {
			out += "b"
		}
		if _, ok := block.As[block.StateTx](s); ok {
			out += "x"
		}
		if _, ok := block.As[block.StateTTL](s); ok {
			out += "e"
		}
		if l, ok := block.As[block.Late](s); ok {
			out += "l"
			if _, sealed := s.(block.StandsFor); sealed && fmt.Sprint(l.Features()) != "[ETAG TTL]" {
				out += fmt.Sprint(l.Features())
			}
		}
		if _, ok := block.As[block.StateQuery](s); ok {
			out += "q"
		}
		return out
	}
	for want, s := range stores {
		if got := abilities(s); got != want {
			t.Fatalf("the test's store %q has %q", want, got)
		}
		if got := abilities(k.Wrap(s)); got != want {
			t.Errorf("encrypted, the store with %q offers %q", want, got)
		}
	}
}

// FuzzOpen opens whatever a store may hold.
func FuzzOpen(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("||a"))
	f.Add(dapr(f, "v", "a", key128))
	f.Add(dapr(f, "", "b", key256))
	f.Add([]byte("AAAA||a||a"))
	s := take(f, primary("a", key128), secondary("b", key256))
	inner := open(f)
	wrapped := s.Wrap(inner)
	f.Fuzz(func(t *testing.T, stored []byte) {
		if err := inner.Set(context.Background(), block.StateWrite{Key: "k", Value: stored}); err != nil {
			return // larger than the store takes
		}
		item, err := wrapped.Get(context.Background(), "k", block.StateRead{})
		if err == nil {
			daprs(t, stored, map[bool]string{true: "a", false: "b"}[bytes.HasSuffix(stored, []byte("||a"))],
				map[bool]string{true: key128, false: key256}[bytes.HasSuffix(stored, []byte("||a"))])
			return
		}
		if fault.Of(err) != fault.Lost || item.Exists || item.Value != nil {
			t.Errorf("%q: %+v, %v", stored, item, err)
		}
	})
}

func BenchmarkSetGet(b *testing.B) {
	s := take(b, primary("a", key256)).Wrap(open(b))
	w := block.StateWrite{Key: "k", Value: make([]byte, 1024)}
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Set(b.Context(), w); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Get(b.Context(), "k", block.StateRead{}); err != nil {
			b.Fatal(err)
		}
	}
}
