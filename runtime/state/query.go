package state

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// Limits of a query. They keep what one request makes a store do within reason; nobody writes a
// larger one by hand.
const (
	maxConditions = 1000   // filters in all, joining ones included
	maxNesting    = 50     // filters inside filters
	maxValues     = 10_000 // of all IN filters together
	maxSorts      = 20
	maxPath       = 1024 // bytes of a key in a filter or a sort
	maxNumber     = 400  // digits and more of a number
)

// Found is the answer to a query: the items with the caller's keys, and what continues it. A
// result whose Err is set stands for an item that cannot be read.
type Found struct {
	Results []Result
	Token   string
}

// Query finds items of this app by what is in their values. The text is JSON:
//
//	{"filter": {…}, "sort": [{"key": "a.b", "order": "ASC"|"DESC"}], "page": {"limit": n, "token": "…"}}
//
// A filter is {"EQ"|"NEQ"|"GT"|"GTE"|"LT"|"LTE": {"a.b": value}}, {"IN": {"a.b": [value, …]}} or
// {"AND"|"OR": [filter, filter, …]}; an empty one matches everything. Whether the store can be
// queried is judged before the text.
func (s *Service) Query(ctx context.Context, store string, query []byte) (Found, error) {
	const op = "state.Query"
	h, err := s.stores.Lookup(store)
	if err != nil {
		return Found{}, err
	}
	if !catalog.Able[block.StateQuery](h) {
		return Found{}, noQuery(store)
	}
	q, err := parseQuery(query)
	if err != nil {
		return Found{}, fault.New(op, fault.Invalid, "failed to parse the query: %s", err).With(BadQuery)
	}
	if err := s.within(h.Info, &q); err != nil {
		return Found{}, err
	}
	start := time.Now()
	desc := s.desc("query", "", call.Safe)
	if catalog.Divided(h, desc) {
		return Found{}, fault.New(op, fault.Unsupported, "state store %s is split by key over several stores; query each of them", store)
	}
	found, err := catalog.Read(ctx, h, desc, q, &querying)
	s.record(store, "query", start, err)
	out := Found{Results: make([]Result, len(found.Items)), Token: found.Token}
	for i := range found.Items {
		it := &found.Items[i]
		it.Key = strings.TrimPrefix(it.Key, q.Prefix)
		out.Results[i] = Result{StateItem: *it, Err: it.Err}
	}
	return out, err
}

func noQuery(store string) error {
	return fault.New("state.Query", fault.Unsupported, "state store %s doesn't support querying", store).With(fault.NoQuery)
}

var querying = catalog.Reading[block.State, block.StateSearch, block.StateFound]{
	Fn: func(ctx context.Context, store block.State, q block.StateSearch) (block.StateFound, error) {
		able, ok := block.As[block.StateQuery](store)
		if !ok {
			return block.StateFound{}, fault.New("state.Query", fault.Unsupported, "the state store behind this one doesn't support querying")
		}
		return able.Query(ctx, q)
	},
	Keep: func(q block.StateSearch) block.StateSearch { return q }, // it is made of copies
}

// within limits a query to the keys of this app. Others hold the separator once more than the
// app's own: those of another app, where keys have no prefix, and those of actors.
func (s *Service) within(info catalog.Info, q *block.StateSearch) error {
	prefix, err := s.prefix(info)
	if err != nil {
		return err
	}
	if q.Apart = separator; prefix != "" {
		q.Prefix = prefix + separator
	}
	return nil
}

// parseQuery reads a query's text. Errors are for the person who wrote it.
func parseQuery(text []byte) (q block.StateSearch, err error) {
	if !utf8.Valid(text) {
		return q, errors.New("it is not valid UTF-8")
	}
	var doc struct {
		Filter json.RawMessage `json:"filter"`
		Sort   []struct {
			Key   string `json:"key"`
			Order string `json:"order"`
		} `json:"sort"`
		Page struct {
			Limit int    `json:"limit"`
			Token string `json:"token"`
		} `json:"page"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return q, err
	}
	if doc.Page.Limit < 0 {
		return q, fmt.Errorf("page.limit is %d; want 0 for all, or more", doc.Page.Limit)
	}
	q.Limit, q.Token = doc.Page.Limit, doc.Page.Token
	if len(doc.Sort) > maxSorts {
		return q, fmt.Errorf("it sorts by %d keys, at most %d are allowed", len(doc.Sort), maxSorts)
	}
	for _, by := range doc.Sort {
		path, err := parsePath(by.Key)
		if err != nil {
			return q, fmt.Errorf("sort: %w", err)
		}
		o := block.StateOrder{Path: path}
		switch strings.ToUpper(by.Order) {
		case "", "ASC":
		case "DESC":
			o.Desc = true
		default:
			return q, fmt.Errorf("sort by %q: order %q is neither ASC nor DESC", by.Key, by.Order)
		}
		q.Sort = append(q.Sort, o)
	}
	q.Filter, err = parseFilter(doc.Filter)
	return q, err
}

// parseFilter reads the outermost filter; an empty one, or none, is nil.
func parseFilter(text json.RawMessage) (*block.StateFilter, error) {
	if len(text) == 0 || string(text) == "null" {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var doc any
	if err := d.Decode(&doc); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("there is text behind the filter")
	}
	if m, ok := doc.(map[string]any); ok && len(m) == 0 {
		return nil, nil
	}
	f, err := (&filters{}).parse(doc, 0)
	return &f, err
}

// filters counts what a query asks for.
type filters struct{ conditions, values int }

func (c *filters) parse(doc any, depth int) (f block.StateFilter, err error) {
	if c.conditions++; c.conditions > maxConditions || depth > maxNesting {
		return f, fmt.Errorf("it has more than %d filters, or more than %d inside each other", maxConditions, maxNesting)
	}
	m, ok := doc.(map[string]any)
	if !ok || len(m) != 1 {
		return f, errors.New(`a filter is an object with one member, such as {"EQ": {"key": "value"}}`)
	}
	for name, arg := range m {
		f.Op = block.StateFilterOp(name)
		switch f.Op {
		case block.FilterAnd, block.FilterOr:
			f.Filters, err = c.several(f.Op, arg, depth)
		case block.FilterEQ, block.FilterNE, block.FilterGT, block.FilterGE, block.FilterLT, block.FilterLE, block.FilterIn:
			f.Path, f.Values, err = c.comparison(f.Op, arg)
		default:
			err = fmt.Errorf("unsupported filter %q; there are EQ, NEQ, GT, GTE, LT, LTE, IN, AND and OR", clip(name))
		}
	}
	return f, err
}

// several reads what AND and OR join.
func (c *filters) several(op block.StateFilterOp, arg any, depth int) ([]block.StateFilter, error) {
	list, ok := arg.([]any)
	if !ok || len(list) < 2 {
		return nil, fmt.Errorf("%s is for an array of at least two filters", op)
	}
	out := make([]block.StateFilter, 0, min(len(list), maxConditions))
	for _, one := range list {
		f, err := c.parse(one, depth+1)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// comparison reads {"key": value}.
func (c *filters) comparison(op block.StateFilterOp, arg any) (path []string, values []any, err error) {
	m, ok := arg.(map[string]any)
	if !ok || len(m) != 1 {
		return nil, nil, fmt.Errorf(`%s is for one key and what it is compared with, {"key": …}`, op)
	}
	for key, v := range m {
		if path, err = parsePath(key); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", op, err)
		}
		values = []any{v}
		if op == block.FilterIn {
			if values, ok = v.([]any); !ok || len(values) == 0 {
				return nil, nil, fmt.Errorf("IN %q: want an array of at least one value", clip(key))
			}
		}
		if c.values += len(values); c.values > maxValues {
			return nil, nil, fmt.Errorf("it has more than %d values", maxValues)
		}
		if slices.ContainsFunc(values, func(v any) bool { return !fits(op, v) }) {
			return nil, nil, fmt.Errorf("%s %q: a value is neither a string nor a number%s", op, clip(key), alsoFor(op))
		}
	}
	return path, values, nil
}

// fits tells whether a filter can compare something with a value.
func fits(op block.StateFilterOp, v any) bool {
	ordered := op == block.FilterGT || op == block.FilterGE || op == block.FilterLT || op == block.FilterLE
	switch v := v.(type) {
	case string:
		return !strings.Contains(v, "\x00")
	case json.Number:
		return plainNumber(string(v))
	case bool, nil:
		return !ordered
	}
	return false
}

func alsoFor(op block.StateFilterOp) string {
	switch op {
	case block.FilterEQ, block.FilterNE, block.FilterIn:
		return ", true, false or null"
	}
	return ""
}

// plainNumber tells whether a number is one of a size that people count with: a short exponent can
// stand for a number of any length.
func plainNumber(n string) bool {
	digits, exp, has := strings.Cut(strings.ToLower(n), "e")
	if !has {
		return len(n) <= maxNumber
	}
	exp = strings.TrimLeft(exp, "+-0")
	return len(digits) <= maxNumber && (len(exp) < 3 || len(exp) == 3 && exp <= "400")
}

// parsePath splits a key such as "person.name".
func parsePath(key string) ([]string, error) {
	switch {
	case key == "":
		return nil, errors.New("a key is empty")
	case len(key) > maxPath:
		return nil, fmt.Errorf("key %q is longer than %d bytes", clip(key), maxPath)
	case strings.Contains(key, "\x00"):
		return nil, errors.New("a key contains a NUL")
	}
	return strings.Split(strings.Clone(key), "."), nil
}

// clip shortens text that is quoted in an error.
func clip(s string) string {
	if len(s) > 40 {
		return strings.ToValidUTF8(s[:40], "") + "…"
	}
	return s
}
