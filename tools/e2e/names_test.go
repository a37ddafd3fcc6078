package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/example/kubevirt-imds/tools/e2e/checks"
	"github.com/example/kubevirt-imds/tools/e2e/guests"
)

// The file checks.txt has each check that there is, and says of each that there was where it is now.
func TestNoCheckIsLost(t *testing.T) {
	text, err := os.ReadFile("checks.txt")
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, name := range slices.Concat(checks.Names(), guests.Names()) {
		there[name] = true
	}
	listed := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		old, now, merged := strings.Cut(line, " -> ")
		if !merged {
			now = old
		}
		listed[now] = true
		if !there[now] {
			t.Errorf("%s: no check of the code has the name %q", line, now)
		}
	}
	for name := range there {
		if !listed[name] {
			t.Errorf("%q is not in checks.txt", name)
		}
	}
}
