package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// eventsFile has the messages of all log lines. People search and count them: one that
// goes, or is renamed, belongs into the changelog.
const eventsFile = "tools/generate/testdata/events.txt"

var logCall = regexp.MustCompile(`(?:\b(?:log|strangers|report|r)|\))\.(?:Info|Warn|Error|write|tellOf)\((?:slog\.Level\w+, )?("[^"]*"|[^,)]*)`)

// TestNamesOfEventsAreStable: the message of a line is the name of its event, always the
// same; what differs is in the attributes.
func TestNamesOfEventsAreStable(t *testing.T) {
	var events []string
	for folder, program := range map[string]string{"injector": "imds-webhook", "netsetup": "imds-init", "server": "imds-server"} {
		err := fs.WalkDir(os.DirFS(filepath.Join(repository, folder)), ".", func(name string, entry fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			for _, call := range logCall.FindAllStringSubmatch(readFile(t, filepath.Join(folder, name)), -1) {
				if message := strings.Trim(call[1], `"`); message != call[1] {
					events = append(events, fmt.Sprintf("%s: %s", program, message))
				} else if call[1] != "message" && !strings.HasPrefix(call[0], ").") { // tellOf's own; an error's text
					t.Errorf("%s/%s: the message of %s) is no constant", folder, name, call[0])
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(events)
	have := strings.Join(slices.Compact(events), "\n") + "\n"
	if diff := cmp.Diff(readFile(t, eventsFile), have); diff != "" {
		t.Errorf("%s (-committed +logged):\n%s\nall that is logged:\n%s", eventsFile, diff, have)
	}
}
