package patchset

import (
	"errors"
	"log/slog"
	"sync"

	"github.com/example/kubevirt-imds/injector/internal/filestamp"
)

// Folder is a folder of patch files that may change while it is in use. A new
// content that is wrong does not replace the last good Set.
type Folder struct {
	path        string
	serverImage string
	log         *slog.Logger

	mu       sync.Mutex
	set      *Set
	stamp    filestamp.Stamp // of the files read last
	stampErr error           // what is wrong with them
	reported string          // the last problem that was logged
}

// Open reads the folder at path; a set that is wrong is an error. serverImage
// is the image for the containers that the patches bring without one.
func Open(path, serverImage string, log *slog.Logger) (*Folder, error) {
	f := &Folder{path: path, serverImage: serverImage, log: log}
	if err := f.refresh(); err != nil {
		return nil, err
	}
	return f, nil
}

// Current returns the set to apply: the folder's content, or the last good one
// and the reason why the content is not in use.
func (f *Folder) Current() (*Set, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.refresh()
	if err != nil && err.Error() != f.reported {
		f.log.Error("changed patches are not used, the last good ones stay", "folder", f.path, "err", err)
		f.reported = err.Error()
	}
	if err == nil {
		f.reported = ""
	}
	return f.set, err
}

// refresh reads the folder again when its files are not the ones that were
// read last. The error is about the files as they are now.
func (f *Folder) refresh() error {
	paths, err := patchFiles(f.path)
	if err != nil {
		return err
	}
	stamp, err := filestamp.Of(paths...)
	if err != nil {
		return err
	}
	if stamp.Equal(f.stamp) {
		return f.stampErr
	}
	set, err := load(paths, f.serverImage)
	if after, errAfter := filestamp.Of(paths...); errAfter != nil || !stamp.Equal(after) {
		return errors.New("the patch files in " + f.path + " change while they are read")
	}
	f.stamp, f.stampErr = stamp, err
	if err != nil {
		return err
	}
	if f.set != nil {
		f.log.Info("changed patches are in use", "folder", f.path, "files", len(paths))
	}
	f.set = set
	return nil
}
