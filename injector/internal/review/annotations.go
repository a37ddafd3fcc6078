package review

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// annotations are this project's of an object, and the names of some of those with annotation.Prefix that
// nobody knows.
type annotations map[string]annotation.Value

// Unknown names and values may come back in a patch, a warning, the log and the answer: sizes in bytes.
const (
	maxUnknown     = 64
	maxUnknownName = 256
	maxValue       = 4096
)

var knownNames = jsontree.Members(annotation.All()...)

// readAnnotations reads metadata.annotations.
func readAnnotations(all jsontree.Value) annotations {
	a, unknown := annotations{}, 0
	for key, value := range all.Members() {
		if _, known := knownNames[string(key)]; known {
			text, isText := value.Text()
			if !isText {
				text = cut(string(value.Raw()), maxValue)
			} else if len(text) > maxValue {
				text = text[:maxValue] + "\x00" // no value that is allowed
			}
			a[string(key)] = annotation.Value{Text: text, NotText: !isText}
		} else if unknown < maxUnknown && bytes.HasPrefix(key, []byte(annotation.Prefix)) {
			unknown++
			a[string(key[:min(len(key), maxUnknownName)])] = annotation.Value{}
		}
	}
	return a
}

// text returns an annotation's text; empty when it has none.
func (a annotations) text(name string) string {
	if value := a[name]; !value.NotText {
		return value.Text
	}
	return ""
}

// has reports whether the annotation is there, whatever its value.
func (a annotations) has(name string) bool {
	_, found := a[name]
	return found
}

// ask reports whether the annotations ask for IMDS.
func (a annotations) ask() bool { return a.text(annotation.Enabled) == "true" }

// decline reports whether they say that it is not wanted.
func (a annotations) decline() bool { return a.text(annotation.Enabled) == "false" }

// without returns the annotations without some names.
func (a annotations) without(names ...string) annotations {
	rest := maps.Clone(a)
	for _, name := range names {
		delete(rest, name)
	}
	return rest
}

// problems returns a sentence for each annotation that a user may not set so. Verdicts pass everywhere.
func (a annotations) problems() (problems []string) {
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if problem := annotation.Problem(name, a[name]); problem != "" && !strings.HasPrefix(name, annotation.VerdictPrefix) {
			problems = append(problems, problem)
		}
	}
	return problems
}

// understood returns what a user's annotations mean where they cannot be refused any more: a value that is
// not understood is left out, or as strict as can be where it protects. The problems say which.
func (a annotations) understood() (meant annotations, problems []string) {
	meant = maps.Clone(a)
	unknown := slices.DeleteFunc(slices.Sorted(maps.Keys(a)), func(name string) bool {
		_, known := knownNames[name]
		return known
	})
	for _, name := range append(annotation.ByUser(), unknown...) {
		problem := ""
		if a.has(name) {
			problem = annotation.Problem(name, a[name])
		}
		if problem == "" {
			continue
		} else if strictest := annotation.Strictest(name); strictest != "" {
			meant[name] = annotation.Value{Text: strictest}
			problem += ", and is taken as " + annotation.Quote(strictest)
		} else {
			delete(meant, name)
			problem += ", and is left out"
		}
		problems = append(problems, problem)
	}
	return meant, problems
}
