package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// devices are the ones that every container has, as far as a program without a
// terminal needs them.
var devices = []string{"null", "zero", "full", "random", "urandom"}

// buildRoot makes the root file system of the container and moves there: the
// files of its image, /proc, /dev, and its volumes. Nothing else of the machine
// can be seen from inside.
func buildRoot(spec Spec) error {
	// Nothing that is mounted from here on is seen outside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	root := spec.Scratch
	if err := unix.Mount("root", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m"); err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	if err := placeImage(spec.Image, root); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	for _, device := range devices {
		if err := bindFile(filepath.Join("/dev", device), filepath.Join(root, "dev", device)); err != nil {
			return err
		}
	}
	for _, m := range spec.Mounts {
		if err := bindFolder(m, filepath.Join(root, m.Target)); err != nil {
			return fmt.Errorf("volume at %s: %w", m.Target, err)
		}
	}
	if err := mountProc(filepath.Join(root, "proc")); err != nil {
		return fmt.Errorf("/proc: %w", err)
	}
	// With the same path twice the old root ends up on top of the new one.
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("letting go of the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if !spec.ReadOnlyRoot {
		return nil
	}
	if err := readOnly("/"); err != nil {
		return fmt.Errorf("read-only root file system: %w", err)
	}
	return nil
}

func placeImage(image, root string) error {
	files, err := os.ReadDir(image)
	if err != nil {
		return err
	}
	for _, file := range files {
		target := filepath.Join(root, file.Name())
		if err := bindFile(filepath.Join(image, file.Name()), target); err != nil {
			return err
		}
		if err := readOnly(target); err != nil {
			return err
		}
	}
	return nil
}

func bindFile(source, target string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(target, nil, 0o644); err != nil {
		return err
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind mount of %s: %w", source, err)
	}
	return nil
}

func bindFolder(m Mount, target string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.Source, target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if m.ReadOnly {
		return readOnly(target)
	}
	return nil
}

// readOnly changes a mount, and not the file system behind it. The flags that
// it has already must be named again: a user namespace may not take them away.
func readOnly(target string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(target, &stat); err != nil {
		return err
	}
	// The ST_* flags of statfs have the values of the MS_* flags but for this
	// one.
	const stRelatime = 0x1000
	flags := uintptr(stat.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME)
	if stat.Flags&stRelatime != 0 {
		flags |= unix.MS_RELATIME
	}
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|flags, "")
}

// mountProc shows the container its own processes. As with every runtime,
// /proc/sys is read-only.
func mountProc(target string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	err := unix.Mount("proc", target, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if errors.Is(err, unix.EPERM) {
		return nil // refused in a user namespace where our own /proc is masked, as inside docker: it stays empty
	}
	if err != nil {
		return err
	}
	sys := filepath.Join(target, "sys")
	if err := unix.Mount(sys, sys, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return readOnly(sys)
}
