package cluster

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBuildKeyFollowsEverySource(t *testing.T) {
	original, err := sourceFolder(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	copied := t.TempDir()
	for _, name := range sources {
		content, err := os.ReadFile(filepath.Join(original, name))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(copied, name), content)
	}
	want := buildKeyOf(t, original)
	if got := buildKeyOf(t, copied); got != want {
		t.Errorf("the same sources in another folder have the key %s, want %s", got, want)
	}
	for _, name := range sources {
		path := filepath.Join(copied, name)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, path, append(content, '\n'))
		if buildKeyOf(t, copied) == want {
			t.Errorf("a change of %s gives the same key", name)
		}
		writeFile(t, path, content)
	}
}

func TestWhoIsSecondWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), path, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	said, locked := make(chan string, 1), make(chan error, 1)
	go func() {
		unlock, err := lock(t.Context(), path, func(format string, _ ...any) { said <- format })
		if err == nil {
			unlock()
		}
		locked <- err
	}()
	if got := <-said; !strings.Contains(got, "waiting") {
		t.Errorf("message %q, want one that says that it is waiting", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lock(ctx, path, t.Logf); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: error %v, want %v", err, context.Canceled)
	}
	select {
	case err := <-locked:
		t.Fatalf("the second did not wait (error %v)", err)
	default:
	}
	unlock()
	if err := <-locked; err != nil {
		t.Error(err)
	}
}

func TestCompileMakesAStaticProgram(t *testing.T) {
	output := filepath.Join(t.TempDir(), "pause")
	if err := Compile(t.Context(), modulePath+"/pause", output); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(output)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode()&0o111 == 0 {
		t.Errorf("mode %v, want an executable", info.Mode())
	}
	// A dynamic ELF file names its loader.
	content, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(content[:4096]), "/ld-") {
		t.Error("the program is not static")
	}
}

func TestFailedCompilationShowsTheCompilersError(t *testing.T) {
	output := filepath.Join(t.TempDir(), "none")
	err := Compile(t.Context(), "./no-such-package", output)
	if err == nil || !strings.Contains(err.Error(), "no-such-package") || !strings.Contains(err.Error(), "build") {
		t.Errorf("error %v, want one with the go command's own words", err)
	}
	if _, err := os.Stat(output); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("output: %v, want none", err)
	}
}

func TestSplitVersion(t *testing.T) {
	major, minor, err := splitVersion("v1.37.2")
	if major != "1" || minor != "37" || err != nil {
		t.Errorf("v1.37.2 is split into %q and %q, error %v", major, minor, err)
	}
	if _, _, err := splitVersion("v1"); err == nil {
		t.Error("v1 is taken for a version of three numbers")
	}
}

func buildKeyOf(t *testing.T, folder string) string {
	t.Helper()
	key, err := buildKey(t.Context(), folder)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writeFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}
