// Package unified compares two texts line by line, in the format of diff -u.
package unified

import (
	"fmt"
	"slices"
	"strings"
)

// context is how many equal lines are shown around a difference.
const context = 3

// Diff returns what turns before into after, under the given names; empty when
// they are equal.
func Diff(beforeName, before, afterName, after string) string {
	if before == after {
		return ""
	}
	edits := compare(lines(before), lines(after))
	var out strings.Builder
	fmt.Fprintf(&out, "--- %s\n+++ %s\n", beforeName, afterName)
	for _, h := range hunks(edits) {
		h.write(&out, edits)
	}
	return out.String()
}

// lines splits a text after each newline. A last line without one is marked, as
// diff does it.
func lines(text string) []string {
	list := strings.SplitAfter(text, "\n")
	if last := len(list) - 1; list[last] == "" {
		return list[:last]
	} else {
		list[last] += "\n\\ No newline at end of file\n"
	}
	return list
}

// edit is a line that both texts have (' '), or only the one before ('-') or
// after ('+').
type edit struct {
	kind byte
	line string
}

// compare finds a longest common subsequence by dynamic programming: the texts
// are manifests, of some hundred lines.
func compare(before, after []string) []edit {
	common := make([][]int, len(before)+1)
	for i := range common {
		common[i] = make([]int, len(after)+1)
	}
	for i, line := range slices.Backward(before) {
		for j, other := range slices.Backward(after) {
			if line == other {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var edits []edit
	i, j := 0, 0
	for i < len(before) || j < len(after) {
		switch {
		case i < len(before) && j < len(after) && before[i] == after[j]:
			edits = append(edits, edit{' ', before[i]})
			i, j = i+1, j+1
		case j == len(after) || i < len(before) && common[i+1][j] >= common[i][j+1]:
			edits = append(edits, edit{'-', before[i]})
			i++
		default:
			edits = append(edits, edit{'+', after[j]})
			j++
		}
	}
	return edits
}

// hunk is a range of edits, the differences in it less than two contexts apart.
type hunk struct {
	from, to int
}

func hunks(edits []edit) []hunk {
	var list []hunk
	for i, e := range edits {
		if e.kind == ' ' {
			continue
		}
		from, to := max(0, i-context), min(len(edits), i+1+context)
		if last := len(list) - 1; last >= 0 && from <= list[last].to {
			list[last].to = to
		} else {
			list = append(list, hunk{from, to})
		}
	}
	return list
}

func (h hunk) write(out *strings.Builder, edits []edit) {
	beforeStart, afterStart := count(edits[:h.from])
	beforeCount, afterCount := count(edits[h.from:h.to])
	fmt.Fprintf(out, "@@ -%s +%s @@\n", position(beforeStart, beforeCount), position(afterStart, afterCount))
	for _, e := range edits[h.from:h.to] {
		out.WriteByte(e.kind)
		out.WriteString(e.line)
	}
}

// count returns how many lines of the text before and of the text after the
// edits cover.
func count(edits []edit) (before, after int) {
	for _, e := range edits {
		if e.kind != '+' {
			before++
		}
		if e.kind != '-' {
			after++
		}
	}
	return before, after
}

// position writes where a hunk is: its first line, or the line before it when
// it has none.
func position(start, count int) string {
	if count > 0 {
		start++
	}
	return fmt.Sprintf("%d,%d", start, count)
}
