package token

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// extraFolder holds the tokens for other audiences, beside the default token.
const extraFolder = "audiences"

// maxExtraFiles bounds how many files of the folder are looked at. The webhook
// allows 8 audiences.
const maxExtraFiles = 16

// Source hands out the default token and the extra ones for other audiences. It
// may be used by several goroutines at a time.
type Source struct {
	primary *file
	folder  string
	now     func() time.Time
	log     *slog.Logger

	mu    sync.Mutex
	extra []*file // in the order of their names
}

// UnknownAudienceError says that no token is for the audience that was asked
// for.
type UnknownAudienceError struct {
	// Known are the audiences that there are tokens for.
	Known []string
}

func (e *UnknownAudienceError) Error() string {
	return fmt.Sprintf("no token for this audience, only for %q", e.Known)
}

// NewSource returns the tokens in the file path and in the folder "audiences"
// beside it. Each change of a file's state is a line in log, never with the
// token.
func NewSource(path string, now func() time.Time, log *slog.Logger) *Source {
	return &Source{
		primary: &file{path: path, log: log},
		folder:  filepath.Join(filepath.Dir(path), extraFolder),
		now:     now,
		log:     log,
	}
}

// Default returns the token of the default file. The error says why there is no
// valid one, and what to do.
func (s *Source) Default() (*Token, error) {
	now := s.now()
	token, err := s.primary.current(now)
	if err != nil {
		return nil, err
	}
	if err := token.validAt(now); err != nil {
		return nil, err
	}
	return token, nil
}

// ForAudience returns a token whose claim "aud" holds audience. The error is an
// *UnknownAudienceError if all tokens could be read and none is for it.
func (s *Source) ForAudience(audience string) (*Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, err := s.search(audience)
	// Twice, since the kubelet may swap the folder while it is being listed.
	for range 2 {
		if err == nil {
			return token, nil
		}
		if err := s.list(); err != nil {
			return nil, err
		}
		token, err = s.search(audience)
	}
	return token, err
}

// search looks through the files that are known. A file that cannot be read may
// be the one that was asked for, so its error outweighs that the others are not.
func (s *Source) search(audience string) (*Token, error) {
	now := s.now()
	var known []string
	var failed error
	for _, file := range append([]*file{s.primary}, s.extra...) {
		token, err := file.current(now)
		if err != nil {
			failed = err
			continue
		}
		if !token.isFor(audience) {
			known = append(known, token.audiences...)
			continue
		}
		if err := token.validAt(now); err != nil {
			failed = err
			continue
		}
		return token, nil
	}
	if failed != nil {
		return nil, failed
	}
	return nil, &UnknownAudienceError{Known: known}
}

// list finds the extra files anew. Those that were known keep what was read.
func (s *Source) list() error {
	names, err := readNames(s.folder)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return unreadable(err)
	}
	before := s.extra
	s.extra = nil
	for _, name := range names {
		path := filepath.Join(s.folder, name)
		i := slices.IndexFunc(before, func(f *file) bool { return f.path == path })
		if i >= 0 {
			s.extra = append(s.extra, before[i])
		} else {
			s.extra = append(s.extra, &file{path: path, log: s.log})
		}
	}
	return nil
}

// readNames returns the names of the token files in a folder, sorted. Names that
// begin with two dots are the kubelet's own, for swapping a volume.
func readNames(folder string) ([]string, error) {
	handle, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	names, err := handle.Readdirnames(4 * maxExtraFiles)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, "..") })
	slices.Sort(names)
	return names[:min(len(names), maxExtraFiles)], nil
}
