package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/mecha-project/mecha/runtime/call"
)

// rewriting changes the headers of invocations. It acts where requests and answers are: the
// chain only carries it. A retry's attempt number is a header too.
func rewriting(b *builder) (does, field string) {
	counts := b.r.Retry != nil && b.service()
	h := b.r.Headers
	if h == nil {
		if counts {
			b.c.Request = numbered
		}
		return "", ""
	}
	request, response := compileRewrite(&h.Request), compileRewrite(&h.Response)
	if !h.Request.empty() || counts {
		b.c.Request = func(c *call.Call, header *call.Fields) {
			request.apply(header)
			if counts {
				numbered(c, header)
			}
		}
	}
	if !h.Response.empty() {
		b.c.Answer = func(_ *call.Call, header *call.Fields) { response.apply(header) }
	}
	return fmt.Sprintf("%d of the request, %d of the answer", request.size(), response.size()), "headers"
}

// numbered says which attempt this is.
func numbered(c *call.Call, header *call.Fields) {
	if c.Attempt > 1 {
		header.Set(attemptHeader, strconv.Itoa(c.Attempt))
	}
}

// rewrite is compiled: maps have no order, headers do.
type rewrite struct {
	remove   []string
	set, add []call.Field
}

func compileRewrite(r *Rewrite) *rewrite {
	out := &rewrite{remove: r.Remove}
	for _, name := range slices.Sorted(maps.Keys(r.Set)) {
		out.set = append(out.set, call.Field{Name: name, Value: r.Set[name]})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Add)) {
		out.add = append(out.add, call.Field{Name: name, Value: r.Add[name]})
	}
	return out
}

func (r *rewrite) size() int { return len(r.remove) + len(r.set) + len(r.add) }

func (r *rewrite) apply(h *call.Fields) {
	for _, name := range r.remove {
		h.Del(name)
	}
	for _, f := range r.set {
		h.Set(f.Name, f.Value)
	}
	for _, f := range r.add {
		h.Add(f.Name, f.Value)
	}
}
