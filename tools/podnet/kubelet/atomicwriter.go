package kubelet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dataLink is the symbolic link by whose renaming a volume changes as a whole.
const dataLink = "..data"

// WriteVolume gives a volume new content, a map of relative paths to bytes, as
// the kubelet's atomic writer does (k8s.io/kubernetes, pkg/volume/util): the
// files are in a folder with the time in its name, "..data" points there, and
// what the user sees are links through "..data". A reader finds all files of
// one version or all of the next, and never half of one. The files belong to a
// group where one is given.
func WriteVolume(folder string, files map[string][]byte, mode os.FileMode, group *int64) error {
	version, err := os.MkdirTemp(folder, time.Now().UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return err
	}
	if err := os.Chmod(version, 0o755); err != nil {
		return err
	}
	for path, content := range files {
		if err := writeFile(version, path, content, mode, group); err != nil {
			return err
		}
	}
	old, err := os.Readlink(filepath.Join(folder, dataLink))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	next := filepath.Join(folder, dataLink+"_tmp")
	if err := os.Symlink(filepath.Base(version), next); err != nil {
		return err
	}
	if err := os.Rename(next, filepath.Join(folder, dataLink)); err != nil {
		return err
	}
	for path := range files {
		top, _, _ := strings.Cut(path, "/")
		err := os.Symlink(filepath.Join(dataLink, top), filepath.Join(folder, top))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if old == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(folder, old))
}

func writeFile(version, path string, content []byte, mode os.FileMode, group *int64) error {
	if !filepath.IsLocal(path) {
		return fmt.Errorf("path %q leaves the volume", path)
	}
	full := filepath.Join(version, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(full, content, mode); err != nil {
		return err
	}
	if err := os.Chmod(full, mode); err != nil { // whatever the umask says
		return err
	}
	return giveToGroup(full, group)
}

// giveToGroup changes a file's group. A user namespace of one user has no other
// group: there the file stays ours, and so the container's.
func giveToGroup(path string, group *int64) error {
	if group == nil {
		return nil
	}
	err := os.Lchown(path, -1, int(*group))
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}
