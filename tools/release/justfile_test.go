package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// projectOf is a repository with the justfile of this one, and three programs that say their version.
func projectOf(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("just"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("just is not on the PATH: see https://just.systems")
		}
		t.Skip("just is not on the PATH: see https://just.systems")
	}
	root := tree(t)
	content, err := os.ReadFile(filepath.Join(repository, "justfile"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, "justfile", string(content))
	write(t, root, ".gitignore", "/bin/\n/dist/\n")
	write(t, root, "go.mod", "module example.com/project\n\ngo 1.26\n")
	for _, folder := range []string{"server", "netsetup", "injector"} {
		write(t, root, folder+"/main.go", "package main\n\nvar version string\n\nfunc main() { print(version) }\n")
	}
	commit(t, root)
	return root
}

// just runs a recipe and returns what it prints.
func just(t *testing.T, root string, args ...string) string {
	t.Helper()
	command := exec.Command("just", args...)
	command.Dir = root
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("just %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// TestTagsAreNoCommands: a tag of a fork, which git fetch brings, may have any name.
func TestTagsAreNoCommands(t *testing.T) {
	for _, tag := range []string{"v9';touch${IFS}PWNED;'", "v9$(touch${IFS}PWNED)", "v9`touch${IFS}PWNED`", `v9";touch${IFS}PWNED;"`, "v9{{justfile()}}"} {
		root := projectOf(t)
		git(t, root, "tag", tag)
		just(t, root, "build")
		dry := just(t, root, "--dry-run", "image")
		if _, err := os.Stat(filepath.Join(root, "PWNED")); err == nil || strings.Contains(dry, tag) {
			t.Errorf("the tag %s is run by a shell", tag)
		}
		programs, err := filepath.Glob(filepath.Join(root, "bin/*/imds-*"))
		if err != nil || len(programs) != 3 {
			t.Fatalf("%v, %v", programs, err)
		}
		for _, program := range programs {
			version, err := exec.Command(program).CombinedOutput()
			if err != nil || !strings.HasPrefix(string(version), "v9") || strings.Trim(string(version), "v9touchIFSPWNEDjustfile") != "" {
				t.Errorf("version %q, %v", version, err)
			}
		}
	}
}

func TestVersionOfATree(t *testing.T) {
	root := projectOf(t)
	git(t, root, "tag", "v1.2.3-rc.1")
	if got := just(t, root, "--evaluate", "version"); got != "v1.2.3-rc.1" {
		t.Errorf("with a tag: %q", got)
	}
	if err := os.RemoveAll(filepath.Join(root, ".git")); err != nil {
		t.Fatal(err)
	}
	if got := just(t, root, "--evaluate", "version"); got != "unknown" {
		t.Errorf("without git: %q", got)
	}
}
