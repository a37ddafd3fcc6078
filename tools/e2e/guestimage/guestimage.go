// Package guestimage makes the kernel and the initial RAM file system of the tests' guest: Debian's kernel for
// clouds with the modules that the guest needs, busybox, and the hand of the tests. Nothing is installed on the
// machine: Debian's packages are unpacked in the user's cache folder.
package guestimage

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
)

// handPackage is what Make compiles into the image as /hand.
const handPackage = "github.com/example/kubevirt-imds/tools/e2e/hand/guest"

// modules are lists of kernel modules, each in a file of that name with a path in each line, in the order in which
// they can be loaded.
var modules = map[string][]string{
	// Loaded at boot: NICs, the hand's serial port, VLANs.
	"lib/boot": {"virtio_pci", "virtio_console", "virtio_net", "8021q"},
	// Loaded by the checks that need them: a network inside the guest, behind its NAT.
	"lib/nat": {"veth", "nft_chain_nat", "nft_masq"},
}

//go:embed init.sh
var initScript []byte

//go:embed udhcpc.sh
var dhcpScript []byte

// applets are the names by which busybox is called, for the scripts. The shell finds the others by itself.
var applets = []string{"sh", "mount", "insmod", "udhcpc", "ip", "ifconfig", "cat", "reboot"}

// Image is what QEMU boots: two files.
type Image struct {
	Kernel, Initramfs string
}

// Make makes the image. The initramfs goes into the folder, the kernel stays in the user's cache folder, where the
// unpacked packages are; the first time they are downloaded, which messages says. It needs apt-get and dpkg-deb,
// and the go command.
func Make(ctx context.Context, folder string, messages io.Writer) (Image, error) {
	unpacked, err := packages(ctx, messages)
	if err != nil {
		return Image{}, fmt.Errorf("packages of the guest: %w", err)
	}
	image := Image{Kernel: filepath.Join(unpacked, kernelFile), Initramfs: filepath.Join(folder, "initramfs")}
	hand := filepath.Join(folder, "hand")
	if err := cluster.Compile(ctx, handPackage, hand); err != nil {
		return Image{}, err
	}
	file, err := os.Create(image.Initramfs)
	if err != nil {
		return Image{}, err
	}
	err = writeInitramfs(file, unpacked, hand)
	if err := errors.Join(err, file.Close()); err != nil {
		return Image{}, fmt.Errorf("initramfs of the guest: %w", err)
	}
	return image, nil
}

// one returns the only file that matches.
func one(folder, pattern string) (string, error) {
	found, err := filepath.Glob(filepath.Join(folder, pattern))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%d files are %s in %s, want one: delete that folder", len(found), pattern, folder)
	}
	if err != nil {
		return "", err
	}
	return found[0], nil
}

// writeInitramfs puts the file system together.
func writeInitramfs(to io.Writer, unpacked, hand string) error {
	out := newArchive(to)
	for _, folder := range []string{"bin", "dev", "etc", "lib", "proc", "root", "sys", "tmp"} {
		out.folder(folder)
	}
	busybox, err := os.ReadFile(filepath.Join(unpacked, "bin/busybox"))
	if err != nil {
		return err
	}
	out.file("bin/busybox", busybox, 0o755)
	for _, applet := range applets {
		out.link("bin/"+applet, "busybox")
	}
	program, err := os.ReadFile(hand)
	if err != nil {
		return err
	}
	out.file("hand", program, 0o755)
	out.file("init", initScript, 0o755)
	out.file("etc/udhcpc.sh", dhcpScript, 0o755)

	packed := map[string]bool{}
	for _, list := range slices.Sorted(maps.Keys(modules)) {
		files, err := moduleFiles(unpacked, modules[list])
		if err != nil {
			return err
		}
		var order bytes.Buffer
		for _, file := range files {
			name := path.Join("lib", filepath.Base(file))
			fmt.Fprintf(&order, "/%s\n", name)
			if packed[name] {
				continue
			}
			packed[name] = true
			content, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			out.file(name, content, 0o644)
		}
		out.file(list, order.Bytes(), 0o644)
	}
	return out.close()
}

// moduleFiles returns the files of modules, and of those that they need, in the order in which the kernel can load them.
func moduleFiles(unpacked string, modules []string) ([]string, error) {
	root, err := one(unpacked, "lib/modules/*")
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	err = filepath.WalkDir(root, func(file string, entry os.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(file), ".ko"); ok {
			files[moduleName(name)] = file
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	order, err := loadOrder(modules, func(name string) ([]string, error) {
		file, ok := files[name]
		if !ok {
			return nil, fmt.Errorf("the kernel's package has no module %s", name)
		}
		return dependencies(file)
	})
	if err != nil {
		return nil, err
	}
	for i, name := range order {
		order[i] = files[name]
	}
	return order, nil
}
