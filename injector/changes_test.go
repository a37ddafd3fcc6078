package main

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Another content is seen, whatever else of the file is as before.
func TestChangesShow(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	write := func(path string, content []byte) {
		t.Helper()
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	source := &certificateSource{certFile: certFile, keyFile: keyFile, log: slog.New(slog.DiscardHandler)}
	if err := source.read(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing files: %v", err)
	}
	pair, longer := issue(t, time.Hour, serviceName), issue(t, time.Hour, serviceName, "another.example")
	write(certFile, pair.Certificate)
	write(keyFile, pair.Key)
	take := func() *chain {
		t.Helper()
		if err := source.read(); err != nil {
			t.Fatal(err)
		}
		return source.newest
	}
	first := take()
	if first != take() {
		t.Error("an unchanged file shows as changed")
	}
	write(certFile, longer.Certificate)
	write(keyFile, longer.Key)
	if first == take() {
		t.Error("another size does not show")
	}

	info, err := os.Stat(certFile)
	if err != nil {
		t.Fatal(err)
	}
	second := take()
	// In place, of the same size and time: the empty line at the end is at the beginning now.
	write(certFile, append([]byte("\n"), bytes.TrimSuffix(longer.Certificate, []byte("\n"))...))
	if err := os.Chtimes(certFile, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	third := take()
	if third == second {
		t.Error("another content of the same size and time does not show")
	}
	// Another inode of the same size and time: a swapped link.
	replaceFile(t, certFile, longer.Certificate)
	if err := os.Chtimes(certFile, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if third == take() {
		t.Error("another inode does not show")
	}
}
