package podnet

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// onDiscardedThread runs f on an operating system thread that is thrown away
// afterwards, so that f may change what belongs to the thread: its namespaces,
// its capabilities.
func onDiscardedThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The runtime parks the main thread instead of ending it, and
			// /proc/self is the main thread's: keep it busy while another does
			// the work.
			done <- onDiscardedThread(f)
			runtime.UnlockOSThread()
			return
		}
		// A goroutine that ends locked takes its thread with it. The deferred
		// send also serves an f that ends the goroutine, as testing.T.FailNow
		// does.
		err := errors.New("the function ended its goroutine")
		defer func() { done <- err }()
		err = f()
	}()
	return <-done
}
