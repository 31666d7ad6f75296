package block

import "context"

// StateQuery is offered by stores that find items by what is in their values.
type StateQuery interface {
	// Query finds the live items whose values are JSON and match. What the store cannot make
	// sense of is fault.Invalid (a token, a number that is too large), what it cannot do
	// fault.Unsupported. An item that alone cannot be read says so in its Err.
	Query(ctx context.Context, q StateSearch) (StateFound, error)
	// Queries tells whether this component is set up for it. Query of one that is not says why.
	Queries() bool
}

// StateSearch is what is looked for. It is checked: paths and values are as the types say.
type StateSearch struct {
	// Prefix is what the keys begin with; empty means nothing. Keys that have Apart behind it are
	// left out, unless Apart is empty.
	Prefix, Apart string
	// Filter says which items; nil means all.
	Filter *StateFilter
	// Sort is the order: by the first, where that is equal by the next. The store makes it a total
	// one, so that pages do not overlap.
	Sort []StateOrder
	// Limit is the largest number of items wanted; 0 means all.
	Limit int
	// Token continues where an earlier answer ended; empty begins.
	Token string
}

// StateFound is the answer to a StateSearch.
type StateFound struct {
	Items []StateItem
	// Token continues behind the last item. It is empty when the limit was not reached.
	Token string
}

// StateFilterOp is what a filter does.
type StateFilterOp string

// What filters do. A path that an item does not have matches nothing, not even FilterNE.
const (
	FilterEQ  StateFilterOp = "EQ"
	FilterNE  StateFilterOp = "NEQ"
	FilterGT  StateFilterOp = "GT"
	FilterGE  StateFilterOp = "GTE"
	FilterLT  StateFilterOp = "LT"
	FilterLE  StateFilterOp = "LTE"
	FilterIn  StateFilterOp = "IN"
	FilterAnd StateFilterOp = "AND"
	FilterOr  StateFilterOp = "OR"
)

// StateFilter is a comparison, or several filters joined.
type StateFilter struct {
	Op StateFilterOp
	// Path leads to what is compared, name by name; it has at least one.
	Path []string
	// Values are what it is compared with: one, or for FilterIn at least one. Each is a string,
	// a json.Number, a bool or nil (JSON null); FilterGT, GE, LT and LE take strings and numbers.
	Values []any
	// Filters are what FilterAnd and FilterOr join: at least two.
	Filters []StateFilter
}

// StateOrder sorts by what a path leads to.
type StateOrder struct {
	Path []string
	Desc bool
}
