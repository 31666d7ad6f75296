package blocktest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// Every suite tells what it is, or the table of `make conformance` would lack it.
func TestSuitesTellTheirBlock(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !f.Name.IsExported() || !takesT(f) || strings.HasPrefix(f.Name.Name, "Test") {
				continue
			}
			seen++
			if !callsSuite(f.Body) {
				t.Errorf("%s: %s does not call suite(t, block.Kind…)", name, f.Name.Name)
			}
		}
	}
	if seen < 8 {
		t.Errorf("found %d suites: does this test still see them?", seen)
	}
}

// takesT tells whether the first parameter is a *testing.T.
func takesT(f *ast.FuncDecl) bool {
	if len(f.Type.Params.List) == 0 {
		return false
	}
	star, ok := f.Type.Params.List[0].Type.(*ast.StarExpr)
	if !ok {
		return false
	}
	sel, ok := star.X.(*ast.SelectorExpr)
	return ok && sel.Sel.Name == "T"
}

func callsSuite(body *ast.BlockStmt) bool {
	for _, s := range body.List {
		e, ok := s.(*ast.ExprStmt)
		if !ok {
			continue
		}
		if call, ok := e.X.(*ast.CallExpr); ok {
			if id, ok := call.Fun.(*ast.Ident); ok && id.Name == "suite" {
				return true
			}
		}
	}
	return false
}
