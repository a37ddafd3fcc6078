package certificate

import (
	"os"
	"slices"
)

// stamp tells cheaply whether files have changed, by their inode, size and
// modification time. The kubelet replaces the files of a mounted Secret by moving
// a symbolic link, so a change shows as another inode.
type stamp []os.FileInfo

// stampOf takes the stamp of the files at paths, following symbolic links.
func stampOf(paths ...string) (stamp, error) {
	var taken stamp
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		taken = append(taken, info)
	}
	return taken, nil
}

// equal reports whether both stamps are of the same files, unchanged.
func (s stamp) equal(other stamp) bool {
	return slices.EqualFunc(s, other, func(a, b os.FileInfo) bool {
		return a.Name() == b.Name() && os.SameFile(a, b) &&
			a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
	})
}
