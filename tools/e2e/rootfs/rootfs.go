// Package rootfs makes the kernel and the initial RAM file system of the tests' guest: Debian's kernel for
// clouds with the modules that the guest needs, busybox, and the tests' agent. Nothing is installed on the
// machine: Debian's packages are unpacked in the user's cache folder.
package rootfs

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
)

// agentPackage is what Make compiles into the image as /agent.
const agentPackage = "github.com/example/kubevirt-imds/tools/e2e/guestagent/agent"

// ModuleList is kernel modules under a name. They are loaded when the guest's shell runs "load NAME".
type ModuleList struct {
	Name    string
	Modules []string
}

// Lists of modules that each guest has: those that are loaded at boot (NICs, the agent's serial port, VLANs), and those for
// a network inside the guest, behind its NAT.
var (
	boot = ModuleList{"boot", []string{"virtio_pci", "virtio_console", "virtio_net", "8021q"}}
	nat  = ModuleList{"nat", []string{"veth", "nft_chain_nat", "nft_masq"}}
)

//go:embed init.sh
var initScript string

//go:embed udhcpc.sh
var dhcpScript string

// loadScript loads those modules of a list that are not there.
const loadScript = `#!/bin/sh
while read -r module; do
	lsmod | grep -q "^$(basename "$module" .ko | tr - _) " || insmod "$module" || exit
done <"/lib/$1"
`

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
	agent := filepath.Join(folder, "agent")
	if err := cluster.Compile(ctx, agentPackage, agent); err != nil {
		return Image{}, err
	}
	var records []cpio.Record
	for _, name := range []string{"bin", "dev", "etc", "lib", "proc", "root", "sys", "tmp"} {
		records = append(records, cpio.Directory(name, 0o755))
	}
	for _, applet := range applets {
		records = append(records, cpio.Symlink("bin/"+applet, "busybox"))
	}
	records = append(records, cpio.StaticFile("init", initScript, 0o755), cpio.StaticFile("bin/load", loadScript, 0o755),
		cpio.StaticFile("etc/udhcpc.sh", dhcpScript, 0o755))
	programs := map[string]string{"bin/busybox": filepath.Join(unpacked, "bin/busybox"), "agent": agent}
	return image, image.write(records, Extras{programs, []ModuleList{boot, nat}}, nil)
}

// Extras are what a guest has that is more than a guest, such as a node.
type Extras struct {
	// Programs are files of this machine, by their paths in the guest, such as node for /node.
	Programs map[string]string
	// Modules that a list needs are with it, but for those that are loaded at boot or that the lists ahead of it have.
	Modules []ModuleList
}

// Extend makes an image that has extras. Its initramfs is a file of its own, which begins with the image's: the
// kernel unpacks one archive after the other.
func (i Image) Extend(initramfs string, extras Extras) (Image, error) {
	base, err := os.ReadFile(i.Initramfs)
	if err != nil {
		return Image{}, err
	}
	extended := Image{Kernel: i.Kernel, Initramfs: initramfs}
	loaded, err := moduleFiles(filepath.Dir(i.Kernel), boot.Modules)
	if err != nil {
		return Image{}, err
	}
	if err := os.WriteFile(initramfs, base, 0o644); err != nil {
		return Image{}, err
	}
	return extended, extended.write(nil, extras, loaded)
}

// write appends an archive to the initramfs. Its modules are those that are not loaded already. It is not compressed: an
// emulated processor takes longer to unpack it than QEMU to read it.
func (i Image) write(records []cpio.Record, extras Extras, loaded []string) error {
	for name, file := range extras.Programs {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		records = append(records, cpio.StaticFile(name, string(content), 0o755))
	}
	for _, list := range extras.Modules {
		files, err := moduleFiles(filepath.Dir(i.Kernel), list.Modules)
		if err != nil {
			return err
		}
		order := ""
		for _, file := range files {
			if slices.Contains(loaded, file) {
				continue
			}
			loaded = append(loaded, file)
			content, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			name := path.Join("lib", filepath.Base(file))
			records = append(records, cpio.StaticFile(name, string(content), 0o644))
			order += "/" + name + "\n"
		}
		records = append(records, cpio.StaticFile(path.Join("lib", list.Name), order, 0o644))
	}
	file, err := os.OpenFile(i.Initramfs, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	out := cpio.Newc.Writer(file)
	return errors.Join(cpio.WriteRecords(out, records), cpio.WriteTrailer(out), file.Close())
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
