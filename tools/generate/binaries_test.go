package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
)

// binaries is where the project's programs are built to, once each.
var binaries struct {
	folder string
	built  sync.Map // the program's folder to func() error
}

func TestMain(m *testing.M) {
	folder, err := os.MkdirTemp("", "imds-binaries-")
	if err != nil {
		panic(err)
	}
	binaries.folder = folder
	status := m.Run()
	os.RemoveAll(folder)
	os.Exit(status)
}

// binary builds the program in a folder of the repository and returns its path.
func binary(t *testing.T, folder string) string {
	t.Helper()
	path := filepath.Join(binaries.folder, filepath.Base(folder))
	build, _ := binaries.built.LoadOrStore(folder, sync.OnceValue(func() error {
		command := exec.Command("go", "build", "-o", path, "./"+folder)
		command.Dir = repository
		if out, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("go build ./%s: %w\n%s", folder, err, out)
		}
		return nil
	}))
	if err := build.(func() error)(); err != nil {
		t.Fatal(err)
	}
	return path
}

// start runs a program until the test ends, and waits for a line of its log that
// pattern matches. It returns the groups of the match.
func start(t *testing.T, command *exec.Cmd, pattern string) []string {
	t.Helper()
	stderr, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	found := make(chan []string, 1)
	var read sync.WaitGroup
	var log bytes.Buffer
	read.Go(func() {
		defer close(found)
		lines := bufio.NewScanner(io.TeeReader(stderr, &log))
		waiting := regexp.MustCompile(pattern)
		for lines.Scan() {
			if match := waiting.FindStringSubmatch(lines.Text()); match != nil {
				found <- match
				waiting = regexp.MustCompile(`^\b$`) // nothing more
			}
		}
	})
	t.Cleanup(func() {
		command.Process.Kill()
		read.Wait()
		command.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", command, &log)
		}
	})
	match, ok := <-found
	if !ok {
		t.Fatalf("%s ended before it logged %q", command, pattern)
	}
	return match
}
