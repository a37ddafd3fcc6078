package main

import (
	"cmp"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/example/kubevirt-imds/tools/generate/internal/unified"
)

// messagesFile is what users read of the three programs: what they log, answer and refuse.
const messagesFile = "testdata/messages.txt"

var updateMessages = flag.Bool("update", false, "write "+messagesFile)

// The kinds of messages. Of what is logged the event is listed, without its attributes.
const (
	logEvents      = "log events"
	problemDetails = "problem details"
	ofAdmission    = "refusals and warnings"
	ofRules        = "comments of rules, and what the kernel lacks"
	otherTexts     = "errors and other texts"
)

// kinds are those of all that is neither logged nor a problem detail in a folder.
var kinds = map[string]string{
	"injector/annotation":        ofAdmission,
	"injector/internal/review":   ofAdmission,
	"injector/internal/patchset": ofAdmission,
	"netsetup/internal/rules":    ofRules,
}

// events are the functions that log, and which of their arguments is the event.
var events = map[string]int{"Info": 0, "Warn": 0, "Error": 0, "tellOf": 0, "write": 1, "tell": 1}

// noMessage are the functions and the packages whose arguments are no messages.
var noMessage = []string{"panic", "Handle", "HandleFunc", "Set", "strings", "bytes", "regexp"}

// verb is one of fmt's.
var verb = regexp.MustCompile(`%[^a-zA-Z]*[a-zA-Z]`)

// TestMessages keeps all messages in one file, for a writer to read at once.
func TestMessages(t *testing.T) {
	found := map[string]map[string]bool{} // messages by their heading
	for _, program := range []string{"server", "netsetup", "injector"} {
		err := filepath.WalkDir(filepath.Join(repository, program), func(name string, entry fs.DirEntry, err error) error {
			inside := filepath.ToSlash(strings.TrimPrefix(name, repository+string(filepath.Separator)))
			if err != nil || path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") || strings.Contains(inside, "/tokentest/") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			messagesOf(file, func(kind, message string) {
				if kind == otherTexts {
					kind = cmp.Or(kinds[path.Dir(inside)], kind)
				}
				heading := program + ": " + kind
				if found[heading] == nil {
					found[heading] = map[string]bool{}
				}
				found[heading][message] = true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var list strings.Builder
	list.WriteString("# Written by: go test ./tools/generate -run TestMessages -update\n# {name} stands for a value, as %s and the like do.\n")
	for _, heading := range slices.Sorted(maps.Keys(found)) {
		fmt.Fprintf(&list, "\n%s\n", heading)
		for _, message := range slices.Sorted(maps.Keys(found[heading])) {
			fmt.Fprintf(&list, "  %s\n", message)
		}
	}
	if *updateMessages {
		if err := os.WriteFile(messagesFile, []byte(list.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(messagesFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := unified.Diff(messagesFile, string(want), "the source", list.String()); diff != "" {
		t.Errorf("%sread the new messages, then: go test ./tools/generate -run TestMessages -update", diff)
	}
}

// messagesOf finds the texts in a file that are no usage text: the event of a call that
// logs, and elsewhere whatever has several words.
func messagesOf(file *ast.File, add func(kind, message string)) {
	var visit func(node ast.Node, kind string)
	descend := func(node ast.Node, kind string) {
		ast.Inspect(node, func(child ast.Node) bool {
			if child == nil || child == node {
				return true
			}
			visit(child, kind)
			return false
		})
	}
	visit = func(node ast.Node, kind string) {
		switch n := node.(type) {
		case *ast.ImportSpec:
			return
		case *ast.Field: // its tag is none
			if n.Type != nil {
				visit(n.Type, kind)
			}
			return
		case *ast.ValueSpec:
			if n.Names[0].Name == "usage" {
				return
			}
		case *ast.CallExpr:
			called, of := calledName(n)
			at, logs := events[called]
			switch {
			case slices.Contains(noMessage, called) || slices.Contains(noMessage, of):
				return
			case logs && of != "http" && at < len(n.Args) && isText(n.Args[at]):
				event, _ := textOf(n.Args[at])
				add(logEvents, event)
				for _, attribute := range n.Args[at+1:] {
					visit(attribute, kind)
				}
				return
			case called == "because":
				kind = problemDetails
			}
		case *ast.BasicLit, *ast.BinaryExpr:
			if expression := n.(ast.Expr); isText(expression) {
				message, _ := textOf(expression)
				if strings.Contains(strings.TrimSpace(message), " ") && strings.ContainsFunc(verb.ReplaceAllString(message, ""), unicode.IsLetter) {
					add(kind, strings.Join(strings.Fields(message), " "))
				}
				return
			}
		}
		descend(node, kind)
	}
	visit(file, otherTexts)
}

func calledName(call *ast.CallExpr) (name, of string) {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return f.Name, ""
	case *ast.SelectorExpr:
		if of, ok := f.X.(*ast.Ident); ok {
			return f.Sel.Name, of.Name
		}
		return f.Sel.Name, ""
	}
	return "", ""
}

// isText tells whether an expression is a string literal, or has one added to it.
func isText(expression ast.Expr) bool {
	_, literal := textOf(expression)
	return literal
}

// textOf is what an expression says, with the names of what is added to a literal.
func textOf(expression ast.Expr) (text string, literal bool) {
	switch e := expression.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			text, _ = strconv.Unquote(e.Value)
			return text, true
		}
	case *ast.BinaryExpr:
		if e.Op == token.ADD {
			left, isLeft := textOf(e.X)
			right, isRight := textOf(e.Y)
			return left + right, isLeft || isRight
		}
	case *ast.ParenExpr:
		return textOf(e.X)
	case *ast.Ident:
		return "{" + e.Name + "}", false
	case *ast.SelectorExpr:
		return "{" + e.Sel.Name + "}", false
	case *ast.CallExpr:
		name, of := calledName(e)
		return "{" + cmp.Or(of, name) + "}", false
	case *ast.IndexExpr:
		return textOf(e.X)
	}
	return "{}", false
}
