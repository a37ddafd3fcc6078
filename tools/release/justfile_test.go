package main

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
			if err != nil || !regexp.MustCompile(`^v9[A-Za-z]+$`).Match(version) {
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

// TestBuiltAreStatic: the images have no dynamic linker.
func TestBuiltAreStatic(t *testing.T) {
	root := projectOf(t)
	t.Setenv("GOFLAGS", "-buildmode=pie")
	t.Setenv("CGO_ENABLED", "1")
	just(t, root, "build")
	programs, err := filepath.Glob(filepath.Join(root, "bin/*/imds-*"))
	if err != nil || len(programs) != 3 {
		t.Fatalf("%v, %v", programs, err)
	}
	for _, program := range programs {
		file, err := elf.Open(program)
		if err != nil {
			t.Fatal(err)
		}
		for _, segment := range file.Progs {
			if segment.Type == elf.PT_INTERP {
				t.Errorf("%s is dynamically linked", program)
			}
		}
		file.Close()
	}
}

// TestBuiltOfTheCommitAlone: neither what is in the folder nor what is set on the machine changes the programs.
func TestBuiltOfTheCommitAlone(t *testing.T) {
	root := projectOf(t)
	sums := func(t *testing.T) string {
		t.Helper()
		r, err := open(t.Context(), root, "v1.2.3")
		if err != nil {
			t.Fatal(err)
		}
		r.tree = t.TempDir()
		if err := r.buildPrograms(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, architecture := range architectures {
			if err := writeSums(filepath.Join(r.tree, "bin/linux-"+architecture)); err != nil {
				t.Fatal(err)
			}
		}
		var all strings.Builder
		for _, architecture := range architectures {
			content, err := os.ReadFile(filepath.Join(r.tree, "bin/linux-"+architecture+"/SHA256SUMS"))
			if err != nil {
				t.Fatal(err)
			}
			all.Write(content)
		}
		return all.String()
	}
	want := sums(t)
	if strings.Count(want, "imds-") != 6 {
		t.Fatal(want)
	}

	const evil = "package main\n\nfunc init() { panic(1) }\n"
	settings := t.TempDir()
	write(t, settings, "go", "GOAMD64=v3\n")
	write(t, settings, "go.work", "go 1.20\n")
	for name, change := range map[string]func(t *testing.T){
		"GOFLAGS":       func(t *testing.T) { t.Setenv("GOFLAGS", "-buildmode=pie -gcflags=-l") },
		"GOAMD64":       func(t *testing.T) { t.Setenv("GOAMD64", "v3") },
		"GOARM64":       func(t *testing.T) { t.Setenv("GOARM64", "v9.0") },
		"GOEXPERIMENT":  func(t *testing.T) { t.Setenv("GOEXPERIMENT", "nogreenteagc") },
		"GOFIPS140":     func(t *testing.T) { t.Setenv("GOFIPS140", "latest") },
		"GOENV":         func(t *testing.T) { t.Setenv("GOENV", filepath.Join(settings, "go")) },
		"GOWORK":        func(t *testing.T) { t.Setenv("GOWORK", filepath.Join(settings, "go.work")) },
		"JUST_JUSTFILE": func(t *testing.T) { t.Setenv("JUST_JUSTFILE", os.DevNull) },
		"a new file": func(t *testing.T) {
			write(t, root, "server/zz_evil.go", evil)
			git(t, root, "config", "status.showUntrackedFiles", "no")
			write(t, root, ".git/info/exclude", "*.go\n")
		},
		"a changed file": func(t *testing.T) {
			write(t, root, "server/main.go", evil)
			git(t, root, "update-index", "--assume-unchanged", "server/main.go")
		},
		"a git attribute": func(t *testing.T) {
			write(t, root, ".git/info/attributes", "main.go filter=evil\n")
			git(t, root, "config", "filter.evil.smudge", "sed s/print/println/")
		},
	} {
		t.Run(name, func(t *testing.T) {
			change(t)
			if got := sums(t); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

// TestHelpOfBench: who asks for help gets no measurement.
func TestHelpOfBench(t *testing.T) {
	root := projectOf(t)
	for args, want := range map[string]bool{"": true, "-svg ratios.svg": true, "-h": false, "--help": false, "-svg x.svg -help": false} {
		dry := just(t, root, append([]string{"--dry-run", "bench"}, strings.Fields(args)...)...)
		if !strings.Contains(dry, "go run ./tools/bench "+args) || strings.Contains(dry, "TestCost") != want {
			t.Errorf("just bench %s runs\n%s", args, dry)
		}
	}
}
