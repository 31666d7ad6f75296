package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// ways are all places in runtime that reach an app, a peer or an endpoint, and why each of them
// is inside a policy chain, or may do without. Components need no list: the catalog does not
// hand them out.
var ways = map[string]string{
	"runtime/invoke attempt.go send Invoke":           "an attempt that call.Run makes",
	"runtime/invoke attempt.go toSelf Invoke":         "the attempt above, when calls that arrive have no policy",
	"runtime/invoke attempt.go remote Invoke":         "an attempt that call.Run makes",
	"runtime/invoke attempt.go mirror Invoke":         "a call of its own, from the beginning",
	"runtime/invoke invoke.go ownApp Invoke":          "between Next and Ended of a call that arrived",
	"runtime/pubsub deliver.go exchange Invoke":       "inside the call.Do of a delivery",
	"runtime/pubsub consumer.go runQueue Consume":     "inside the lasting call of a subscription",
	"runtime/pubsub consumer.go once Deliver":         "inside the call.Do of a delivery",
	"runtime/pubsub batch.go onceBatch DeliverBulk":   "inside the call.Do of a delivery",
	"runtime/config update.go post Invoke":            "inside the call.Do of an update",
	"runtime/binding deliver.go exchange Invoke":      "inside the call.Do of an event, or the question whether the app wants it",
	"runtime/binding deliver.go once BindingEvent":    "inside the call.Do of an event",
	"runtime/binding deliver.go forward Invoke":       "the service itself, from the beginning",
	"runtime/app app.go Invoke Invoke":                "the app's own limits, below the chain",
	"runtime/pubsub admit.go Deliver Deliver":         "the app's own limits, below the chain",
	"runtime/pubsub admit.go DeliverBulk DeliverBulk": "the app's own limits, below the chain",
	"runtime/host load.go askApp Invoke":              "the sidecar's own questions at start, before there are callers",
	"runtime/host policy.go probe Invoke":             "a health check must reach an endpoint that policy keeps calls from",
}

// No call may reach a backend, an app or a peer around its policy.
func TestNoWayAroundPolicy(t *testing.T) {
	found := waysIn(t, filepath.Join("..", "..", "runtime"))
	for _, w := range found {
		if ways[w] == "" {
			t.Errorf("%s reaches an app, a peer or an endpoint: make it an attempt of a call (package call), or say here why it may do without", w)
		}
	}
	for w := range ways {
		if !slices.Contains(found, w) {
			t.Errorf("%s is listed and does not exist", w)
		}
	}
}

// waysIn lists the calls of methods with the names that lead out, as "package file function method".
func waysIn(t *testing.T, root string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(filepath.Dir(strings.TrimPrefix(filepath.ToSlash(path), "../../")))
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				c, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := c.Fun.(*ast.SelectorExpr)
				if ok && slices.Contains([]string{"Invoke", "Deliver", "DeliverBulk", "BindingEvent", "Consume", "Transact"}, sel.Sel.Name) && !insideCatalog(c) {
					out = append(out, fmt.Sprintf("%s %s %s %s", pkg, filepath.Base(path), fn.Name.Name, sel.Sel.Name))
				}
				return true
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// insideCatalog tells whether a method is called on what the catalog lends: operations on
// components have no other way to one.
func insideCatalog(c *ast.CallExpr) bool {
	x, ok := c.Fun.(*ast.SelectorExpr).X.(*ast.Ident)
	return ok && slices.Contains([]string{"store", "broker", "tx", "comp"}, x.Name)
}
