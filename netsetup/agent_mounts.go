package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// detachBelow takes all mounts below a folder out of the process's mount namespace,
// where that is its own, and says how many. A container runtime binds the folder with
// all that is mounted in it: the Secrets of pods that were there before.
func detachBelow(folder string) (detached int, err error) {
	if !hasOwnMounts() {
		return 0, nil
	}
	if folder, err = filepath.EvalSymlinks(folder); err != nil {
		return 0, err
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return 0, err
	}
	var below []string
	shared := map[string]bool{} // by the mount's number
	for line := range strings.Lines(string(table)) {
		// Number, parent, device, root, place, options, tags up to "-".
		fields := strings.Fields(line)
		shared[fields[0]] = strings.HasPrefix(fields[6], "shared:")
		place := fields[4] // without escapes: no name below has white space
		if !strings.HasPrefix(place, folder+"/") {
			continue
		}
		if shared[fields[1]] {
			return 0, fmt.Errorf("%s is mounted on a mount that others share; set mountPropagation: None", place)
		}
		below = append(below, place)
	}
	var errs []error
	for _, place := range slices.Backward(below) {
		if err := unix.Unmount(place, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", place, err))
			continue
		}
		detached++
	}
	return detached, errors.Join(errs...)
}

// hasOwnMounts says whether the mount namespace is not that of who started the
// process, who is not seen from a container.
func hasOwnMounts() bool {
	parent := os.Getppid()
	if parent == 0 {
		return true
	}
	own, err := namespaceAt("/proc/self/ns/mnt")
	if err != nil {
		return false
	}
	theirs, err := namespaceAt(fmt.Sprintf("/proc/%d/ns/mnt", parent))
	return err == nil && own != theirs
}
