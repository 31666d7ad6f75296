// Package sqlstate is what state stores on SQL databases have in common: tables made on
// first use, expired rows removed now and then by one of many sidecars, the text form of
// values, pages of scans, names and numbers of fences, and, for drivers of database/sql, the
// store itself (Store), which needs only a product's statements (Dialect).
//
// It is no backend: it knows no product and offers no part. Start reading at Store; Gate, Cleaner
// and Pager stand alone.
package sqlstate

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/crc32"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)

// CheckName reports a table or schema name that would need quoting; key is the metadata key
// it was given with. Names become part of statements.
func CheckName(key, name string) error {
	if !identifier.MatchString(name) {
		return conf.Bad(key, "%q is not a name; use letters, digits and _, at most 63, not beginning with a digit", name)
	}
	return nil
}

// CheckQualified is CheckName for "table" or "schema.table".
func CheckQualified(key, name string) error {
	schema, table, found := strings.Cut(name, ".")
	if !found {
		return CheckName(key, name)
	}
	return errors.Join(CheckName(key, schema), CheckName(key, table))
}

// Beside is the name of a table of ours that belongs to table, which may be qualified. It is
// short enough for every product.
func Beside(table, suffix string) string {
	schema, name, found := strings.Cut(table, ".")
	if !found {
		schema, name = "", table
	} else {
		schema += "."
	}
	const most = 63
	if len(name)+len(suffix) > most { // cut off, two names could become one
		sum := fmt.Sprintf("_%08x", crc32.ChecksumIEEE([]byte(name)))
		name = name[:most-len(suffix)-len(sum)] + sum
	}
	return schema + name + suffix
}

// CheckKey reports a key that a text column cannot hold.
func CheckKey(op fault.Op, key string) error {
	if strings.IndexByte(key, 0) >= 0 || !utf8.ValidString(key) {
		return fault.New(op, fault.Invalid, "key %q is not UTF-8 text without NUL, which is all the database can hold", key).
			With(fault.IllegalKey).WithSent(fault.SentNever)
	}
	return nil
}

// Base64 is the text form of a value in tables whose value column holds text.
func Base64(value []byte) string { return base64.StdEncoding.EncodeToString(value) }

// FromBase64 reads it back.
func FromBase64(text []byte) ([]byte, error) {
	out := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Decode(out, text)
	return out[:n], err
}

// Quoted is Base64 as a JSON string, for value columns that hold JSON. The alphabet needs no
// escapes.
func Quoted(value []byte) string { return `"` + Base64(value) + `"` }

// FromQuoted reads it back.
func FromQuoted(text []byte) ([]byte, error) {
	if len(text) < 2 || text[0] != '"' || text[len(text)-1] != '"' {
		return nil, errors.New("want a JSON string")
	}
	// JSON writers may escape the slash.
	return FromBase64([]byte(strings.ReplaceAll(string(text[1:len(text)-1]), `\/`, `/`)))
}

// Order lists the indexes of ops by key. Operations on one key keep their order; those on
// different keys do not depend on each other, and transactions that lock rows in the order of
// keys cannot wait for each other in a circle.
func Order(ops []block.StateOp) []int {
	order := make([]int, len(ops))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return strings.Compare(ops[a].Key, ops[b].Key) })
	return order
}

// Writes makes operations of writes.
func Writes(ws []block.StateWrite) []block.StateOp {
	ops := make([]block.StateOp, len(ws))
	for i := range ws {
		ops[i].StateWrite = ws[i]
	}
	return ops
}

// Removal makes an operation of a removal.
func Removal(d block.StateDelete) block.StateOp {
	return block.StateOp{Delete: true, StateWrite: block.StateWrite{Key: d.Key, ETag: d.ETag}}
}

// Removals makes operations of removals.
func Removals(ds []block.StateDelete) []block.StateOp {
	ops := make([]block.StateOp, len(ds))
	for i, d := range ds {
		ops[i] = Removal(d)
	}
	return ops
}

// Guarded tells whether an operation may be refused by what is stored.
func Guarded(o *block.StateOp) bool { return o.ETag != "" || o.FirstWrite && !o.Delete }

// Refused is the answer to a guarded operation that found no row to apply to.
func Refused(op fault.Op, o *block.StateOp) error {
	if o.ETag != "" {
		return fault.New(op, fault.Conflict, "key %q does not have etag %q; read it again", o.Key, o.ETag).WithSent(fault.SentNever)
	}
	return fault.New(op, fault.Conflict, "key %q exists already and the request is a first write", o.Key).WithSent(fault.SentNever)
}

// Digits are an epoch as statements take it: as text in the order of numbers, for not every
// product has 64 bits without a sign.
func Digits(epoch uint64) string { return fmt.Sprintf("%020d", epoch) }

// Fenced is the answer to an epoch that is over.
func Fenced(op fault.Op, fence string, epoch uint64) error {
	return fault.New(op, fault.Conflict, "a later epoch than %d has written with the fence %q", epoch, fence).
		With(fault.Fenced).WithSent(fault.SentNever)
}

// Answered tells whether err is a finished answer that another attempt would only repeat.
func Answered(err error) bool {
	_, ok := errors.AsType[*fault.Error](err)
	return ok
}

// Some is errs, or nil when all of them are.
func Some(errs []error) []error {
	if slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
		return errs
	}
	return nil
}

// Ended is the error of a call whose context ended.
func Ended(op fault.Op, cause error, sent fault.Sent) error {
	e := &fault.Error{Op: op, Code: fault.Canceled, Sent: sent, Err: cause}
	if errors.Is(cause, context.DeadlineExceeded) {
		e.Code = fault.Deadline
	}
	return e
}

// Over is why ctx ended, or nil. A deadline that has passed counts although its timer has not
// run yet: a connection with the same deadline may be a moment ahead of it.
func Over(ctx context.Context) error {
	if end, ok := ctx.Deadline(); ok && ctx.Err() == nil && !time.Now().Before(end) {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

// Unsent marks an error of a driver that came before any statement was sent, such as that of
// a connection that could not be made.
type Unsent struct{ Err error }

func (e *Unsent) Error() string { return e.Err.Error() }

// Unwrap gives the cause to errors.Is and errors.As.
func (e *Unsent) Unwrap() error { return e.Err }

// Closed is the error of a call after Close.
func Closed(op fault.Op) error {
	return fault.New(op, fault.Unavailable, "the component is closed").WithSent(fault.SentNever)
}

// Gate lets calls pass once something has been prepared. The zero value is shut.
type Gate struct {
	open atomic.Bool
	turn atomic.Pointer[chan struct{}]
}

// Pass prepares if nobody has yet. While one prepares, others wait; they give up with their
// contexts. A failure leaves the gate shut: the next caller tries again.
func (g *Gate) Pass(ctx context.Context, prepare func(context.Context) error) error {
	if g.open.Load() {
		return nil
	}
	if g.turn.Load() == nil {
		ch := make(chan struct{}, 1)
		g.turn.CompareAndSwap(nil, &ch)
	}
	turn := *g.turn.Load()
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-turn }()
	if g.open.Load() {
		return nil
	}
	err := prepare(ctx)
	if err == nil {
		g.open.Store(true)
	}
	return err
}

// Shut makes the next call prepare again.
func (g *Gate) Shut() { g.open.Store(false) }
