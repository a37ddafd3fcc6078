package unified

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const poem = "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\nten\neleven\ntwelve\n"

func TestDiffIsWhatPatchNeeds(t *testing.T) {
	patch, err := exec.LookPath("patch")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("patch is not on the PATH: apt-get install patch")
		}
		t.Skip("patch is not on the PATH: apt-get install patch")
	}
	for name, after := range map[string]string{
		"a line changed":             strings.Replace(poem, "five", "cinque", 1),
		"first and last changed":     strings.NewReplacer("one\n", "uno\n", "twelve", "dodici").Replace(poem),
		"a line added at the start":  "zero\n" + poem,
		"a line added at the end":    poem + "thirteen\n",
		"lines removed":              strings.Replace(poem, "three\nfour\n", "", 1),
		"differences close together": strings.NewReplacer("two", "due", "seven", "sette").Replace(poem),
		"everything removed":         "",
		"the last newline removed":   strings.TrimSuffix(poem, "\n"),
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "poem")
			if err := os.WriteFile(file, []byte(poem), 0o600); err != nil {
				t.Fatal(err)
			}
			diff := Diff("poem", poem, "poem", after)
			apply := exec.Command(patch, "--fuzz=0", file)
			apply.Stdin = strings.NewReader(diff)
			if out, err := apply.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s\n%s", err, out, diff)
			}
			// patch removes a file that becomes empty.
			if got, err := os.ReadFile(file); err != nil && !os.IsNotExist(err) || string(got) != after {
				t.Errorf("patched: %q (%v), want %q, by\n%s", got, err, after, diff)
			}
		})
	}
}

func TestDiffShowsThreeLinesAround(t *testing.T) {
	got := Diff("old", poem, "new", strings.Replace(poem, "six", "sei", 1))
	want := "--- old\n+++ new\n@@ -3,7 +3,7 @@\n three\n four\n five\n-six\n+sei\n seven\n eight\n nine\n"
	if got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

func TestEqualTextsHaveNoDiff(t *testing.T) {
	if got := Diff("old", poem, "new", poem); got != "" {
		t.Errorf("got %q", got)
	}
}
