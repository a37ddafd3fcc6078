package kubelet

import (
	"os"
	"strings"
)

// shownLines is how many lines of a log explain a failure.
const shownLines = 10

// lastLines returns the end of a log.
func lastLines(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "its log cannot be read: " + err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-shownLines):], "\n")
}
