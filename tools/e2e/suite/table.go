package suite

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// writeTable writes a row for each thing proved, in the order in which they came first, and a column for each
// place where it was.
func writeTable(out io.Writer, results []result) {
	var rows, columns []string
	cells := map[[2]string]Outcome{}
	for _, r := range results {
		if !slices.Contains(rows, r.proves) {
			rows = append(rows, r.proves)
		}
		if !slices.Contains(columns, r.column) {
			columns = append(columns, r.column)
		}
		cells[[2]string{r.proves, r.column}] = r.outcome
	}
	width := 0
	for _, row := range rows {
		width = max(width, utf8.RuneCountInString(row))
	}

	line := func(row string, cell func(column string) string) {
		fmt.Fprint(out, row, strings.Repeat(" ", width-utf8.RuneCountInString(row)))
		for _, column := range columns {
			fmt.Fprintf(out, "  %-*s", max(len(column), len(Pass)), cell(column))
		}
		fmt.Fprintln(out)
	}
	line("", func(column string) string { return column })
	for _, row := range rows {
		line(row, func(column string) string {
			if outcome, ran := cells[[2]string{row, column}]; ran {
				return string(outcome)
			}
			return "-"
		})
	}
}
