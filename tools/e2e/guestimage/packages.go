package guestimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
)

const (
	// kernelPackage depends on the package of the newest kernel, whose name has its version in it.
	kernelPackage  = "linux-image-cloud-amd64"
	busyboxPackage = "busybox-static"
	// kernelFile is what QEMU boots, in the folder of the unpacked packages.
	kernelFile = "kernel"
	// layout changes with what is made of the packages, so that the same versions are unpacked anew.
	layout = "2"
)

// packages returns the folder into which Debian's packages are unpacked. Other versions of them go into another.
func packages(ctx context.Context, messages io.Writer) (string, error) {
	cache, err := cluster.CacheFolder()
	if err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(cache, "guest.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()

	names, key, err := resolve(ctx)
	if err == nil {
		folder := filepath.Join(cache, "guest-"+key)
		if _, err := os.Stat(folder); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return folder, err
		}
		fmt.Fprintf(messages, "downloading the guest's packages: %s\n", strings.Join(names, " "))
		if err = unpack(ctx, names, folder); err == nil {
			return folder, nil
		}
	}
	// The lists of packages are missing, or so old that the mirror has other versions now.
	fmt.Fprintf(messages, "apt-get update, because: %v\n", err)
	if _, err := output(ctx, "", "apt-get", "update", "-q"); err != nil {
		return "", err
	}
	if names, key, err = resolve(ctx); err != nil {
		return "", err
	}
	folder := filepath.Join(cache, "guest-"+key)
	return folder, unpack(ctx, names, folder)
}

// resolve finds out which packages those are now, and a key that names exactly their versions.
func resolve(ctx context.Context) (names []string, key string, err error) {
	depends, err := output(ctx, "", "apt-cache", "depends", "--important", kernelPackage)
	if err != nil {
		return nil, "", err
	}
	kernel := regexp.MustCompile(`Depends: (linux-image-\S+)`).FindStringSubmatch(depends)
	if kernel == nil {
		return nil, "", fmt.Errorf("apt-cache knows no kernel that %s depends on", kernelPackage)
	}
	names = []string{kernel[1], busyboxPackage}
	// A line for each, with the checksum.
	addresses, err := output(ctx, "", "apt-get", append([]string{"download", "--print-uris"}, names...)...)
	if err != nil {
		return nil, "", err
	}
	return names, fmt.Sprintf("%x", sha256.Sum256([]byte(layout+addresses)))[:12], nil
}

// unpack downloads packages, whose checksums apt-get verifies, and unpacks them.
func unpack(ctx context.Context, names []string, folder string) error {
	unfinished := folder + ".unfinished"
	downloads := filepath.Join(unfinished, "packages")
	if err := errors.Join(os.RemoveAll(unfinished), os.MkdirAll(downloads, 0o755)); err != nil {
		return err
	}
	// As the user who runs it: apt's own cannot write here.
	_, err := output(ctx, downloads, "apt-get", append([]string{"download", "-q", "-o", "APT::Sandbox::User=root"}, names...)...)
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(downloads, "*.deb"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if _, err := output(ctx, "", "dpkg-deb", "-x", file, unfinished); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(downloads); err != nil {
		return err
	}
	if err := placeKernel(unfinished); err != nil {
		return err
	}
	// Only what is whole gets the name by which it is found.
	return os.Rename(unfinished, folder)
}

// placeKernel makes the file that QEMU boots from the one in the kernel's package.
func placeKernel(folder string) error {
	bzImage, err := one(folder, "boot/vmlinuz-*")
	if err != nil {
		return err
	}
	kernel := filepath.Join(folder, kernelFile)
	if extracted, err := extractKernel(bzImage, kernel); extracted || err != nil {
		return err
	}
	return os.Rename(bzImage, kernel)
}

// lock has one process at a time fill the cache.
func lock(path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { file.Close() }, nil
}

// output runs a program of Debian's and returns what it wrote.
func output(ctx context.Context, folder, name string, args ...string) (string, error) {
	var complaint bytes.Buffer
	command := exec.CommandContext(ctx, name, args...)
	command.Dir = folder
	command.Env = append(os.Environ(), "LC_ALL=C")
	command.Stderr = &complaint
	written, err := command.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%w: the guest is made from Debian's packages, on Debian or Ubuntu", err)
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return string(written), nil
}
