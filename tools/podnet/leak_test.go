package podnet

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCloseLeaksNothing(t *testing.T) {
	live := func() []uint64 {
		p, err := New(Options{Binding: Bridge})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		inodes := []uint64{inode(t, p.Pod.Path()), inode(t, p.Guest.Path()), inode(t, p.Neighbour.Path())}
		for _, step := range []func() error{
			p.Wire, p.StartGuest,
			func() error { return p.AddSecondaryBridge("pod37a8eec1ce1") },
			p.StopGuest, p.StartGuest, p.UnplugTap, p.PlugTap, p.RemoveBridge, p.RestoreBridge,
		} {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		recording, err := Capture(p.Pod, "tap0")
		if err != nil {
			t.Fatal(err)
		}
		neighbourAsks(t, p, true, 50*time.Millisecond)
		impostor, err := p.Impersonate(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		mustGet(t, p.Guest, "http://169.254.169.254/", ImpostorBody)
		if err := impostor.Stop(); err != nil {
			t.Error(err)
		}
		if _, err := recording.Stop(); err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		return inodes
	}
	Require(t)
	live() // the first makes what the runtime and the libraries keep for good
	runtime.GC()
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	gone := live()

	// The last goroutines of an HTTP connection and the threads of Namespace.Do
	// end a moment after their work is done, and there is no event to tell.
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := leftovers(t, goroutines, files, gone)
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(left)
		}
		time.Sleep(time.Millisecond)
	}
}

func leftovers(t *testing.T, goroutines, files int, namespaces []uint64) string {
	t.Helper()
	if now := runtime.NumGoroutine(); now > goroutines {
		stacks := make([]byte, 1<<20)
		return fmt.Sprintf("%d goroutines, %d before:\n%s", now, goroutines, stacks[:runtime.Stack(stacks, true)])
	}
	if now := openFiles(t); now > files {
		return fmt.Sprintf("%d open files, %d before", now, files)
	}
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		var stat unix.Stat_t
		if unix.Stat(thread, &stat) != nil {
			continue // it has ended meanwhile
		}
		for _, n := range namespaces {
			if stat.Ino == n {
				return "a thread is still in a closed namespace: " + thread
			}
		}
	}
	return ""
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
