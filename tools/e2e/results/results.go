// Package results sums up a test binary's checks in tables that people read: what was proved, and what was measured.
//
// A check is a subtest with a name that is listed in a file, as subject/check. [Main] fails where the subtests and the
// list are not the same, so that none is lost.
package results

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
)

// result is what became of a check.
type result struct {
	subject, name, proves string
	outcome               string // PASS, FAIL or SKIP
	figure                string // what was measured, if anything was
}

func (r *result) cell() string {
	if r.outcome == "PASS" && r.figure != "" {
		return r.figure
	}
	return r.outcome
}

var (
	mu      sync.Mutex // guards what follows
	results []*result
	running = map[string]*result{} // by the tests' names
	without string                 // why all checks are skipped; empty: they are not
	partial bool
)

// Partial says that not all of the listed checks can be run.
func Partial() { partial = true }

// SkipAll has each check skip itself, with the reason.
func SkipAll(reason string) { without = reason }

// Skipping says whether there is to be nothing but skipped checks, so that what they need must not be made.
func Skipping() bool { return without != "" }

// Check runs a check of a subject as a subtest, and says whether it passed. What it proves is a line under the table.
func Check(t *testing.T, subject, name, proves string, run func(*testing.T)) bool {
	return t.Run(path.Base(name), func(t *testing.T) {
		r := &result{subject: subject, name: name, proves: proves}
		mu.Lock()
		results = append(results, r)
		running[t.Name()] = r
		mu.Unlock()
		t.Cleanup(func() {
			mu.Lock()
			defer mu.Unlock()
			switch r.outcome = "PASS"; {
			case t.Failed():
				r.outcome = "FAIL"
			case t.Skipped():
				r.outcome = "SKIP"
			}
		})
		if without != "" {
			t.Skip(without)
		}
		run(t)
	})
}

// Figure is what a check has measured, in short, such as "12 ms": it stands for the outcome when the check passes.
func Figure(t testing.TB, format string, args ...any) {
	t.Helper()
	text := fmt.Sprintf(format, args...)
	t.Log(text)
	mu.Lock()
	defer mu.Unlock()
	if r := running[t.Name()]; r != nil {
		r.figure = text
	}
}

// Layout writes the sum of a run.
type Layout func(io.Writer, []*result)

// Main runs the tests, writes the sum, and returns the exit status. The file lists all checks.
func Main(m *testing.M, file string, layout Layout) int {
	status := m.Run()
	list, err := readList(file)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	slices.SortStableFunc(results, func(a, b *result) int {
		return slices.Index(list, a.subject+"/"+a.name) - slices.Index(list, b.subject+"/"+b.name)
	})
	if without == "" && len(results) > 0 {
		fmt.Println()
		layout(os.Stdout, results)
		fmt.Printf("\n%d passed, %d failed, %d skipped\n", count("PASS"), count("FAIL"), count("SKIP"))
	}
	for _, problem := range compare(list, results) {
		// What a filter or a failure has left out is not lost.
		if missing := strings.HasPrefix(problem, "not run"); missing && (partial || filtered() || status != 0) {
			continue
		}
		fmt.Printf("%s: %s\n", file, problem)
		status = 1
	}
	return status
}

// readList returns the names in a list, where a line "old -> new" says which check holds now what another one has.
func readList(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		_, now, merged := strings.Cut(line, " -> ")
		if !merged {
			now = line
		}
		names = append(names, now)
	}
	return names, nil
}

// compare says which checks are listed and were not run, and which were run and are not listed.
func compare(list []string, results []*result) (problems []string) {
	var names []string
	for _, r := range results {
		names = append(names, r.subject+"/"+r.name)
	}
	for _, name := range list {
		if !slices.Contains(names, name) {
			problems = append(problems, "not run: "+name)
		}
	}
	for _, name := range names {
		if !slices.Contains(list, name) {
			problems = append(problems, "not listed: "+name)
		}
	}
	return problems
}

// filtered says whether the command line leaves tests out.
func filtered() bool {
	for _, name := range []string{"test.run", "test.skip", "test.list"} {
		if flag.Lookup(name).Value.String() != "" {
			return true
		}
	}
	return false
}

func count(outcome string) (n int) {
	for _, r := range results {
		if r.outcome == outcome {
			n++
		}
	}
	return n
}

// ByProof is a row for each thing proved and a column for each subject that it was proved of.
func ByProof(out io.Writer, results []*result) {
	var t table
	for _, r := range results {
		t.put(r.proves, r.subject, r.cell())
	}
	t.write(out, "subjects")
}

// BySubject is a table for each group of subjects, which is what their names have before the first slash: a row for
// each of them and a column for each check. What a check proves is said below.
func BySubject(out io.Writer, results []*result) {
	var groups []string
	tables, proofs := map[string]*table{}, map[string]*table{}
	for _, r := range results {
		group, row, _ := strings.Cut(r.subject, "/")
		if tables[group] == nil {
			groups = append(groups, group)
			tables[group], proofs[group] = new(table), new(table)
		}
		tables[group].put(row, r.name, r.cell())
		proofs[group].put(r.name, "", r.proves)
	}
	for _, group := range groups {
		tables[group].write(out, group)
		proofs[group].write(out, "")
		fmt.Fprintln(out)
	}
}

// table has its rows and columns in the order in which they came first.
type table struct {
	rows, columns []string
	cells         map[[2]string]string
}

func (t *table) put(row, column, cell string) {
	if !slices.Contains(t.rows, row) {
		t.rows = append(t.rows, row)
	}
	if !slices.Contains(t.columns, column) {
		t.columns = append(t.columns, column)
	}
	if t.cells == nil {
		t.cells = map[[2]string]string{}
	}
	t.cells[[2]string{row, column}] = cell
}

func (t *table) write(to io.Writer, title string) {
	var text strings.Builder
	out := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, title+"\t"+strings.Join(t.columns, "\t"))
	for _, row := range t.rows {
		line := row
		for _, column := range t.columns {
			cell, there := t.cells[[2]string{row, column}]
			if !there {
				cell = "-"
			}
			line += "\t" + cell
		}
		fmt.Fprintln(out, line)
	}
	out.Flush()
	for line := range strings.Lines(text.String()) {
		fmt.Fprintln(to, strings.TrimRight(line, " \n"))
	}
}
