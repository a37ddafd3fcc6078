package review

import (
	"bytes"
	"maps"
	"slices"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

// annotations are those of an object that are this project's.
type annotations struct {
	known map[string]annotation.Value
	// unknown are names with annotation.Prefix, some of the most that there
	// are; unknownCount is how many there are.
	unknown      []string
	unknownCount int
}

// maxUnknown and maxUnknownName bound what is kept of names that nobody knows.
const (
	maxUnknown     = 64
	maxUnknownName = 256
)

var knownNames = func() map[string]bool {
	known := map[string]bool{}
	for _, name := range annotation.All() {
		known[name] = true
	}
	return known
}()

// readAnnotations reads metadata.annotations.
func readAnnotations(metadata jsontree.Value) annotations {
	a := annotations{known: map[string]annotation.Value{}}
	for key, value := range metadata.Get("annotations").Members() {
		switch {
		case knownNames[string(key)]:
			text, isText := value.Text()
			if !isText {
				text = string(value)
			}
			a.known[string(key)] = annotation.Value{Text: text, NotText: !isText}
		case bytes.HasPrefix(key, []byte(annotation.Prefix)):
			a.unknownCount++
			if len(a.unknown) < maxUnknown {
				a.unknown = append(a.unknown, string(key[:min(len(key), maxUnknownName)]))
			}
		}
	}
	return a
}

func (a annotations) empty() bool { return len(a.known) == 0 && a.unknownCount == 0 }

func (a annotations) equal(other annotations) bool {
	return maps.Equal(a.known, other.known) && a.unknownCount == other.unknownCount && slices.Equal(a.unknown, other.unknown)
}

// text returns an annotation's text; empty when it has none.
func (a annotations) text(name string) string {
	if value := a.known[name]; !value.NotText {
		return value.Text
	}
	return ""
}

// has reports whether the annotation is there, whatever its value.
func (a annotations) has(name string) bool {
	_, found := a.known[name]
	return found
}

// ask reports whether the annotations ask for IMDS.
func (a annotations) ask() bool { return a.text(annotation.Enabled) == "true" }

// decline reports whether they say that it is not wanted.
func (a annotations) decline() bool { return a.text(annotation.Enabled) == "false" }

// without returns the annotations without some names.
func (a annotations) without(names ...string) annotations {
	a.known = maps.Clone(a.known)
	for _, name := range names {
		delete(a.known, name)
	}
	return a
}

// over returns the annotations with those of under that they lack.
func (a annotations) over(under annotations) annotations {
	known := maps.Clone(under.known)
	maps.Copy(known, a.known)
	unknown := slices.Concat(a.unknown, under.unknown)
	slices.Sort(unknown)
	unknown = slices.Compact(unknown)
	return annotations{known, unknown, max(len(unknown), a.unknownCount, under.unknownCount)}
}

// problems returns one sentence for each annotation that a user may not set so,
// in the order of their names.
func (a annotations) problems() []string {
	var problems []string
	for _, name := range slices.Sorted(slices.Values(slices.Concat(slices.Collect(maps.Keys(a.known)), a.unknown))) {
		if !isVerdict(name) {
			if problem := annotation.Problem(name, a.known[name]); problem != "" {
				problems = append(problems, problem)
			}
		}
	}
	return problems
}

// isVerdict leaves out what older versions do not know either.
func isVerdict(name string) bool {
	return name != annotation.RedirectPort && slices.Contains(annotation.Verdict(), name)
}

// understood returns what a user's annotations mean where they cannot be refused
// any more: a value that is not understood is left out, or as strict as can be
// where it protects. The problems say which.
func (a annotations) understood() (meant annotations, problems []string) {
	meant = a.without()
	for _, name := range annotation.ByUser() {
		value, found := a.known[name]
		if !found {
			continue
		}
		if problem := annotation.Problem(name, value); problem != "" {
			delete(meant.known, name)
			if strictest := annotation.Strictest(name); strictest != "" {
				meant.known[name] = annotation.Value{Text: strictest}
				problem += ", and is taken as " + annotation.Quote(strictest)
			} else {
				problem += ", and is left out"
			}
			problems = append(problems, problem)
		}
	}
	return meant, problems
}
