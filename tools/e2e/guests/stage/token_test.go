package stage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTokenIsSwappedAsAWhole(t *testing.T) {
	if os.Geteuid() != 0 {
		const reason = "only root can give the files to the pod's group; run the tests of this module as root"
		if os.Getenv("CI") == "true" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	v := &tokenVolume{folder: t.TempDir(), pod: "virt-launcher-vm", audiences: []string{"vault"}}
	var seen []string
	for range 3 {
		token, err := v.rotate()
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(v.path())
		if err != nil || string(content) != token {
			t.Fatalf("the file does not hold the token that was issued (%v)", err)
		}
		other, err := os.ReadFile(filepath.Join(v.folder, "audiences/0"))
		if err != nil || string(other) == token || strings.Count(string(other), ".") != 2 {
			t.Fatalf("the other audience's file holds no token of its own (%v)", err)
		}
		seen = append(seen, token, string(other))
	}
	for i, token := range seen {
		for _, earlier := range seen[:i] {
			if token == earlier {
				t.Error("a token was issued twice")
			}
		}
	}
	versions, err := filepath.Glob(filepath.Join(v.folder, "..version_*"))
	if err != nil || len(versions) != 1 {
		t.Errorf("%d versions are left, want one", len(versions))
	}
}
