// Package filestamp tells cheaply whether files have changed, by their inode,
// size and modification time. The kubelet replaces the files of a mounted
// Secret or ConfigMap by moving a symbolic link, so a change shows as another
// inode.
package filestamp

import (
	"os"
	"slices"
)

// Stamp is the state of a list of files at one moment.
type Stamp []os.FileInfo

// Of takes the stamp of the files at paths, following symbolic links.
func Of(paths ...string) (Stamp, error) {
	stamp := make(Stamp, 0, len(paths))
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		stamp = append(stamp, info)
	}
	return stamp, nil
}

// Equal reports whether both stamps are of the same files, unchanged.
func (s Stamp) Equal(other Stamp) bool {
	return slices.EqualFunc(s, other, func(a, b os.FileInfo) bool {
		return a.Name() == b.Name() && os.SameFile(a, b) &&
			a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
	})
}
