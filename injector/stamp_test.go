package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestChangesShow(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write := func(path, content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	take := func() string {
		t.Helper()
		taken, err := stampOf(path)
		if err != nil {
			t.Fatal(err)
		}
		return taken
	}

	write(path, "one")
	first := take()
	if first != take() {
		t.Error("an unchanged file shows as changed")
	}
	write(path, "three")
	if first == take() {
		t.Error("another size does not show")
	}

	// The same content, size and time behind another inode: a swapped link.
	write(other, "three")
	second := take()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(other, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	if second == take() {
		t.Error("another inode does not show")
	}

	if _, err := stampOf(path, other); !os.IsNotExist(err) {
		t.Errorf("a missing file: %v", err)
	}
	if none, err := stampOf(); err != nil || none == first || none != "" {
		t.Error("no files are equal to no files only")
	}
}
