package review

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

func read(t *testing.T, values map[string]string) annotations {
	t.Helper()
	text, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	all, err := jsontree.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return readAnnotations(all)
}

func TestNamesOfOthersAreLeftAlone(t *testing.T) {
	if a := read(t, map[string]string{
		"kubevirt.io/enabled":               "maybe",
		"imds.kubevirt.io":                  "x",
		"ximds.kubevirt.io/enabled":         "x",
		"IMDS.kubevirt.io/enabled":          "x",
		"verdict.imds.kubevirt.io/of-later": "x",
	}); len(a) != 0 {
		t.Errorf("got %v", a)
	}
}

// Values and names are the tenant's, and end in messages, in the log and in patches.
func TestMessageIsBounded(t *testing.T) {
	values := map[string]string{annotation.Enabled: strings.Repeat("\x00", 100_000), annotation.HopLimit: strings.Repeat("1", 100_000)}
	for _, letter := range "abcdefghijklmnopqrstuvwxyz" {
		values[annotation.Prefix+strings.Repeat(string(letter), 100_000)] = ""
	}
	a := read(t, values)
	if message := join(a.problems()); len(message) > 4096 || !strings.HasSuffix(message, "and 16 more") {
		t.Errorf("%d bytes: %s", len(message), message)
	}
	meant, problems := a.understood()
	if message := join(problems); len(message) > 4096 || meant.text(annotation.HopLimit) != "1" {
		t.Errorf("%d bytes: %s; meant %v", len(message), message, meant.text(annotation.HopLimit))
	}
}
