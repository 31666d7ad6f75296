package policy

import (
	"fmt"
	"maps"
	"slices"

	"github.com/mecha-project/mecha/runtime/call"
)

// rewriting changes the headers of invocations. It acts where requests and answers are: the
// chain only carries it. The number of an attempt is a header too.
func rewriting(b *builder) (does, field string) {
	if b.r.Retry != nil && b.service() {
		b.c.AttemptHeader = attemptHeader
	}
	h := b.r.Headers
	if h == nil {
		return "", ""
	}
	request, response := compileRewrite(&h.Request), compileRewrite(&h.Response)
	if !h.Request.empty() {
		b.c.Request = func(_ *call.Call, header *call.Fields) { request.apply(header) }
	}
	if !h.Response.empty() {
		b.c.Answer = func(_ *call.Call, header *call.Fields) { response.apply(header) }
	}
	return fmt.Sprintf("%d of the request, %d of the answer", request.size(), response.size()), "headers"
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
