package api

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The type of each problem is a URL that leads to an anchor on the page, and the page
// explains no problem that there is not.
func TestEachTypeLeadsToItsExplanation(t *testing.T) {
	path, found := strings.CutPrefix(documentation, "https://github.com/example/kubevirt-imds/blob/main/")
	if !found {
		t.Fatalf("%s is no page of this repository", documentation)
	}
	page, err := os.ReadFile(filepath.Join("../../..", path))
	if err != nil {
		t.Fatal(err)
	}
	var explained []string
	for _, match := range regexp.MustCompile(`<a id="([^"]*)"></a>`).FindAllSubmatch(page, -1) {
		explained = append(explained, string(match[1]))
	}
	anchors := anchorsInSource(t)
	slices.Sort(explained)
	slices.Sort(anchors)
	if len(anchors) == 0 || !slices.Equal(anchors, explained) {
		t.Errorf("%s has the anchors %q, want those of the problems: %q", path, explained, anchors)
	}
}

// anchorsInSource reads the kinds of problem from problem.go, so that none is
// forgotten here.
func anchorsInSource(t *testing.T) (anchors []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "problem.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(node ast.Node) bool {
		literal, ok := node.(*ast.CompositeLit)
		if !ok {
			return true
		}
		if name, ok := literal.Type.(*ast.Ident); ok && name.Name == "kind" {
			anchor, err := strconv.Unquote(literal.Elts[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			anchors = append(anchors, anchor)
		}
		return true
	})
	return anchors
}
