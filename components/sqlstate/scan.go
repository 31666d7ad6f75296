package sqlstate

import (
	"context"
	"database/sql"
	"sync/atomic"
	"unicode/utf8"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Pager makes the pages of a store's scans. The zero value works.
//
// Databases send all rows that a statement asks for, so it asks for as many as make a page by the
// size of the items before.
type Pager struct{ size atomic.Int64 } // bytes of an item, of the last page with values

// few is the least that a statement asks for, if the limit allows it.
const few = 4

// Page checks the arguments of a scan.
func (g *Pager) Page(op fault.Op, prefix, token string, limit int, keysOnly bool) (Page, error) {
	if err := CheckKey(op, prefix); err != nil {
		return Page{}, err
	}
	if limit < 1 {
		return Page{}, fault.New(op, fault.Invalid, "a page of %d items; want 1 or more", limit).WithSent(fault.SentNever)
	}
	last, begun, err := block.PageAfter(op, prefix, token)
	if err != nil {
		return Page{}, err
	}
	p := Page{From: prefix, Begun: begun, Before: after(prefix), Limit: limit}
	if begun {
		if p.From = last; CheckKey("", last) != nil { // a token that somebody made up
			return Page{}, fault.New(op, fault.Invalid, "the page token names no key").With(fault.BadToken).WithSent(fault.SentNever)
		}
	}
	if !keysOnly {
		p.pager = g
		if size := g.size.Load(); size > 0 {
			p.Limit = min(limit, max(few, int(block.PageBytes/size)))
		}
	}
	return p, nil
}

// Page is what a page of a scan asks of a table whose keys are in the order of their bytes.
type Page struct {
	// From is where it begins: at this key, or, if Begun, behind it.
	From  string
	Begun bool
	// Before is where the scan ends; empty when it goes on to the last key.
	Before string
	Limit  int

	pager *Pager // nil when values are left out
}

// Where is the condition on the expression key, its order and the limit. mark gives the place of
// the argument with a number, from 1; Args are in the same order.
func (p Page) Where(key string, mark func(int) string) string {
	compare, n := " >= ", 1
	if p.Begun {
		compare = " > "
	}
	text := key + compare + mark(n)
	if p.Before != "" {
		n++
		text += " AND " + key + " < " + mark(n)
	}
	return text + " ORDER BY " + key + " LIMIT " + mark(n+1)
}

// Args are the arguments of Where.
func (p Page) Args() []any {
	args := []any{p.From}
	if p.Before != "" {
		args = append(args, p.Before)
	}
	return append(args, int64(p.Limit))
}

// Fill reads the rows of the page. It stops when the page is much larger than was thought: early
// tells that rows are left, for which the connection is not worth waiting.
func (p Page) Fill(next func() bool, read func() (block.StateItem, error)) (items []block.StateItem, early bool, err error) {
	size := 0
	for !early && next() {
		item, err := read()
		if err != nil {
			return nil, false, err
		}
		items = append(items, item)
		size += len(item.Key) + len(item.Value)
		early = size > 2*block.PageBytes && len(items) < p.Limit
	}
	if p.pager != nil && len(items) > 0 {
		p.pager.size.Store(int64(max(1, size/len(items))))
	}
	return items, early, nil
}

// Token names the page behind items, if there may be one.
func (p Page) Token(prefix string, items []block.StateItem, early bool) string {
	if !early && len(items) < p.Limit {
		return ""
	}
	return block.PageToken(prefix, items[len(items)-1].Key)
}

// after is the least text that is greater than every text that begins with prefix; empty when
// there is none. The bytes of UTF-8 are in the order of its runes.
func after(prefix string) string {
	for prefix != "" {
		r, n := utf8.DecodeLastRuneInString(prefix)
		prefix = prefix[:len(prefix)-n]
		switch r {
		case utf8.MaxRune:
			continue
		case 0xd7ff: // what follows are no characters
			return prefix + "\ue000"
		}
		return prefix + string(r+1)
	}
	return ""
}

// Scan gives items in the order of the bytes of their keys.
func (s *Store) Scan(ctx context.Context, prefix, token string, limit int, keysOnly bool) ([]block.StateItem, string, error) {
	op := s.op("Scan")
	page, err := s.pager.Page(op, prefix, token, limit, keysOnly)
	if err != nil {
		return nil, "", err
	}
	var items []block.StateItem
	early := false
	err = s.do(ctx, op, false, func(ctx context.Context, db *sql.DB) error {
		text := s.d.Scan
		if keysOnly {
			text = s.d.ScanKeys
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		rows, err := db.QueryContext(ctx, text+page.Where(s.d.ScanKey(), func(int) string { return "?" }), page.Args()...)
		if err != nil {
			return err
		}
		defer rows.Close()
		items, early, err = page.Fill(rows.Next, func() (block.StateItem, error) { return s.scan(op, rows.Scan) })
		switch {
		case err != nil:
			return err
		case early:
			cancel()
			return nil
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", err
	}
	return items, page.Token(prefix, items, early), nil
}
