package sqlstate

import (
	"context"
	"database/sql"
	"unicode/utf8"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Page is what a page of a scan asks of a table whose keys are in the order of their bytes.
type Page struct {
	// From is where it begins: at this key, or, if Begun, behind it.
	From  string
	Begun bool
	// Before is where the scan ends; empty when it goes on to the last key.
	Before string
	Limit  int
}

// NewPage checks the arguments of a scan.
func NewPage(op fault.Op, prefix, token string, limit int) (Page, error) {
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
	return p, nil
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

// Token names the page behind items, of which full tells that there may be more.
func (p Page) Token(prefix string, items []block.StateItem, full bool) string {
	if !full || len(items) == 0 {
		return ""
	}
	return block.PageToken(prefix, items[len(items)-1].Key)
}

// Fill reads rows until next reports false. It stops when the page is large, and tells whether
// there may be more.
func (p Page) Fill(next func() bool, read func() (block.StateItem, error)) (items []block.StateItem, full bool, err error) {
	size := 0
	for len(items) < p.Limit && size < block.PageBytes {
		if !next() {
			return items, false, nil
		}
		item, err := read()
		if err != nil {
			return nil, false, err
		}
		size += len(item.Key) + len(item.Value)
		items = append(items, item)
	}
	return items, true, nil
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
	page, err := NewPage(op, prefix, token, limit)
	if err != nil {
		return nil, "", err
	}
	var items []block.StateItem
	full := false
	err = s.do(ctx, op, false, func(ctx context.Context, db *sql.DB) error {
		text := s.d.Scan
		if keysOnly {
			text = s.d.ScanKeys
		}
		rows, err := db.QueryContext(ctx, text+page.Where(s.d.ScanKey(), func(int) string { return "?" }), page.Args()...)
		if err != nil {
			return err
		}
		defer rows.Close()
		items, full, err = page.Fill(rows.Next, func() (block.StateItem, error) { return s.scan(op, rows.Scan) })
		if err != nil {
			return err
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", err
	}
	return items, page.Token(prefix, items, full), nil
}
