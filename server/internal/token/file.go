package token

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// maxSize bounds a token file, in bytes. The kubelet's have about 1,300.
const maxSize = 64 << 10

// settleTime is how old the last change of a file must be for its times to tell
// it from the next one. The kernel stamps files by a clock that ticks every 1 to
// 10 ms, so two changes within a tick may look the same.
const settleTime = time.Second

// file is one token file. It is read again when it is another one, or another
// version of it, than the one read before, which costs one stat(2) to find out.
type file struct {
	path string
	log  *slog.Logger

	// latest is what a request needs to know while nothing changes, so that it waits
	// for no other; nil: look at it all.
	latest atomic.Pointer[available]

	mu sync.Mutex
	// version is what token and malformed were read from; settled says that the
	// version still tells, malformed why the content is no token.
	version   version
	settled   bool
	token     *Token
	malformed error
	// reportedToken or reportedReason is the state that was logged last.
	reportedToken  *Token
	reportedReason string
}

// available is a token that was valid when it was last looked at, in a version of the
// file that still tells. It is in the log.
type available struct {
	version version
	token   *Token
}

// version tells one content of a file from another. The kubelet swaps the whole
// folder by a symbolic link, which changes dev and ino; the others tell a file
// that was written in place.
type version struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func versionOf(stat *syscall.Stat_t) version {
	return version{dev: stat.Dev, ino: stat.Ino, size: stat.Size, mtime: stat.Mtim, ctime: stat.Ctim}
}

// current returns the token that the file holds now, expired or not. The error
// says why there is none, and what to do.
func (f *file) current(now time.Time) (*Token, error) {
	if latest := f.latest.Load(); latest != nil && latest.token.validAt(now) == nil {
		var stat syscall.Stat_t
		if err := syscall.Stat(f.path, &stat); err == nil && latest.version == versionOf(&stat) {
			return latest.token, nil
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	token, err := f.load(now)
	f.report(token, err, now)
	f.latest.Store(nil)
	if err == nil && f.settled && token.validAt(now) == nil {
		f.latest.Store(&available{f.version, token})
	}
	return token, err
}

// load looks at the file, and once more if it was swapped just then: the kubelet
// removes the folder of before, in which the first look may still have been.
func (f *file) load(now time.Time) (*Token, error) {
	token, err := f.look(now)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, errChanged) {
		return f.look(now)
	}
	return token, err
}

// look reads the file if it is not the version that was read before.
func (f *file) look(now time.Time) (*Token, error) {
	var stat syscall.Stat_t
	if err := syscall.Stat(f.path, &stat); err != nil {
		return nil, unreadable(&os.PathError{Op: "stat", Path: f.path, Err: err})
	}
	if f.settled && f.version == versionOf(&stat) {
		return f.token, f.malformed
	}
	content, version, err := readFile(f.path)
	if err != nil {
		f.settled = false
		return nil, err
	}
	if f.token == nil || !bytes.Equal(f.token.JWT, content) {
		f.token, f.malformed = newToken(content)
		if f.malformed != nil {
			f.malformed = fmt.Errorf("the file %s holds no JWT: %w", f.path, f.malformed)
		}
	}
	f.version = version
	f.settled = now.Sub(time.Unix(version.ctime.Unix())) >= settleTime
	return f.token, f.malformed
}

// report logs when the state of the file is another than before.
func (f *file) report(token *Token, err error, now time.Time) {
	if err == nil {
		err = token.validAt(now)
	}
	if err != nil {
		if reason := err.Error(); f.reportedReason != reason {
			f.log.Warn("token unavailable", "file", f.path, "reason", reason)
			f.reportedToken, f.reportedReason = nil, reason
		}
		return
	}
	if f.reportedToken != token {
		f.log.Info("token available", "file", f.path, "expires", token.expires)
		f.reportedToken, f.reportedReason = token, ""
	}
}

var errChanged = errors.New("changed while it was read")

// readFile returns the content of a regular file without the white space around
// it, and the version that the content is of.
func readFile(path string) ([]byte, version, error) {
	// Without O_NONBLOCK a named pipe in the file's place would block for ever.
	handle, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, version{}, unreadable(err)
	}
	defer handle.Close()

	before, err := statRegular(handle)
	if err != nil {
		return nil, version{}, err
	}
	if before.size > maxSize {
		return nil, version{}, fmt.Errorf("the file %s has %d bytes, more than the %d that a token may have; project a ServiceAccount token there", path, before.size, maxSize)
	}
	content, err := io.ReadAll(io.LimitReader(handle, maxSize+1))
	if err != nil {
		return nil, version{}, unreadable(err)
	}
	after, err := statRegular(handle)
	if err != nil {
		return nil, version{}, err
	}
	if before != after || int64(len(content)) != after.size {
		return nil, version{}, fmt.Errorf("the file %s %w; ask again", path, errChanged)
	}
	return bytes.TrimSpace(content), after, nil
}

func statRegular(handle *os.File) (version, error) {
	info, err := handle.Stat()
	if err != nil {
		return version{}, unreadable(err)
	}
	if !info.Mode().IsRegular() {
		return version{}, fmt.Errorf("%s is not a regular file; project a ServiceAccount token there", handle.Name())
	}
	return versionOf(info.Sys().(*syscall.Stat_t)), nil
}

// unreadable adds the remedy to an error of the file system.
func unreadable(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w; give the pod an fsGroup, so that every container may read the token", err)
	}
	return fmt.Errorf("%w; check that the pod has its token volume and that it is mounted in this container", err)
}
