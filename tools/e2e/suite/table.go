package suite

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// Layout writes the sum of a suite.
type Layout func(io.Writer, []result)

// ByProof is a row for each thing proved, in the order in which they came first, and a column for each subject
// that it was proved of.
func ByProof(out io.Writer, results []result) {
	t := newTable()
	for _, r := range results {
		t.put(r.proves, r.subject, r.cell())
	}
	t.write(out)
}

// BySubject is a table for each group of subjects, which is what their names have before the first slash: a row for
// each of them and a column for each check, headed by its name, with what was measured. What a check proves is said
// below.
func BySubject(out io.Writer, results []result) {
	var groups []string
	matrices, proofs := map[string]*table{}, map[string]*table{}
	for _, r := range results {
		group, row, _ := strings.Cut(r.subject, "/")
		if matrices[group] == nil {
			groups = append(groups, group)
			matrices[group], proofs[group] = newTable(), newTable()
		}
		matrices[group].put(row, r.name, r.cell())
		proofs[group].put(r.name, "", r.proves)
	}
	for i, group := range groups {
		if i > 0 {
			fmt.Fprintln(out)
		}
		matrices[group].title = group
		matrices[group].write(out)
		proofs[group].write(out)
	}
}

func (r result) cell() string {
	if r.outcome == Pass && r.figure != "" {
		return r.figure
	}
	return string(r.outcome)
}

// table has its rows and columns in the order in which they came first.
type table struct {
	title         string // above the rows
	rows, columns []string
	cells         map[[2]string]string
}

func newTable() *table { return &table{cells: map[[2]string]string{}} }

func (t *table) put(row, column, cell string) {
	if !slices.Contains(t.rows, row) {
		t.rows = append(t.rows, row)
	}
	if !slices.Contains(t.columns, column) {
		t.columns = append(t.columns, column)
	}
	t.cells[[2]string{row, column}] = cell
}

func (t *table) cell(row, column string) string {
	if cell, there := t.cells[[2]string{row, column}]; there {
		return cell
	}
	return "-"
}

func (t *table) write(out io.Writer) {
	first := utf8.RuneCountInString(t.title)
	for _, row := range t.rows {
		first = max(first, utf8.RuneCountInString(row))
	}
	widths := map[string]int{}
	for _, column := range t.columns {
		widths[column] = utf8.RuneCountInString(column)
		for _, row := range t.rows {
			widths[column] = max(widths[column], utf8.RuneCountInString(t.cell(row, column)))
		}
	}
	line := func(row string, cell func(column string) string) {
		text := fmt.Sprintf("%-*s", first, row)
		for _, column := range t.columns {
			text += fmt.Sprintf("  %-*s", widths[column], cell(column))
		}
		fmt.Fprintln(out, strings.TrimRight(text, " "))
	}
	line(t.title, func(column string) string { return column })
	for _, row := range t.rows {
		line(row, func(column string) string { return t.cell(row, column) })
	}
}
