package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var errNotYet = errors.New("connection refused")

func TestAwaitAsksUntilReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p, messages := waiting(t)
		asked := 0
		err := c.await(t.Context(), p, func(context.Context) error {
			if asked++; asked < 3 {
				return errNotYet
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if want := "etcd is ready\n"; !strings.HasSuffix(messages.String(), want) {
			t.Errorf("messages %q, want them to end with %q", messages, want)
		}
	})
}

func TestAwaitFailsWhenTheComponentEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p, _ := waiting(t)
		ended, end := context.WithCancelCause(t.Context())
		p.ended = ended
		err := c.await(t.Context(), p, func(ctx context.Context) error {
			// As a watch does: it comes back when its context ends.
			end(errors.New("exit status 1"))
			<-ctx.Done()
			return ctx.Err()
		})
		expectError(t, err, "etcd", "exit status 1", p.log, "line 40", "line 16")
		if strings.Contains(err.Error(), "line 15\n") {
			t.Errorf("error holds more than the last %d lines of the log: %v", tailSize, err)
		}
		if passed := time.Since(c.progress.begin); passed != 0 {
			t.Errorf("noticed after %s, want at once", passed)
		}
	})
}

func TestAwaitFailsAfterSomeTimeAndReportsUntilThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p, messages := waiting(t)
		err := c.await(t.Context(), p, func(context.Context) error { return errNotYet })
		expectError(t, err, "etcd", "not ready after 3m0s", errNotYet.Error(), p.log)
		if got, want := strings.Count(messages.String(), "still waiting for etcd\n"), int(readyTime/patience)-1; got < want {
			t.Errorf("%d messages in %s, want at least %d:\n%s", got, readyTime, want, messages)
		}
	})
}

func TestAwaitOfAnInterruptedStartBlamesNoComponent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p, _ := waiting(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("interrupt signal received"))
		err := c.await(ctx, p, func(context.Context) error { return errNotYet })
		expectError(t, err, "wait for etcd", "interrupt signal received")
		if strings.Contains(err.Error(), "line 40") {
			t.Errorf("error shows a log: %v", err)
		}
	})
}

// waiting is a cluster that waits for a component with a log of 40 lines.
func waiting(t *testing.T) (*Cluster, *component, *bytes.Buffer) {
	t.Helper()
	var log strings.Builder
	for line := range 40 {
		fmt.Fprintf(&log, "line %d\n", line+1)
	}
	path := filepath.Join(t.TempDir(), "etcd.log")
	if err := os.WriteFile(path, []byte(log.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	messages := new(bytes.Buffer)
	return &Cluster{progress: newProgress(messages)}, &component{name: "etcd", log: path, ended: context.Background()}, messages
}

func expectError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q, want %q in it", err, part)
		}
	}
}
