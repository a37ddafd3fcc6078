package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lock takes the lock of all builds of this user, waiting for whoever has it.
func (b *build) lock(ctx context.Context, path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock of the build: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		b.progress.say("another build is going on; waiting for it")
		defer b.progress.during(func() string { return "still waiting for the other build" })()
		taken := make(chan error, 1)
		go func() { taken <- unix.Flock(int(file.Fd()), unix.LOCK_EX) }()
		select {
		case err = <-taken:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock of the build: %w", err)
	}
	return func() { file.Close() }, nil
}
