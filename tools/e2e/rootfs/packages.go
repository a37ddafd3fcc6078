package rootfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pierrec/lz4/v4"

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
	unlock, err := cluster.LockCache(ctx, "guest.lock", func(format string, args ...any) { fmt.Fprintf(messages, format+"\n", args...) })
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

// Fields of a bzImage's header, by their offsets (Documentation/x86/boot.rst).
const (
	setupSectors  = 0x1f1 // a byte: sectors of 512 bytes before the kernel's own code, less one
	headerMagic   = 0x202 // four bytes: HdrS
	payloadOffset = 0x248 // from the begin of that code
	payloadLength = 0x24c // with four bytes more: the size of what is in it
	headerEnd     = 0x250
)

// lz4Magic begins what the kernel's build calls LZ4, the legacy format of lz4(1).
var lz4Magic = []byte{0x02, 0x21, 0x4c, 0x18}

// extractKernel writes the kernel in a bzImage as the ELF file that it was made from. An emulated processor takes
// a second to unpack it by itself, and four when it boots again; QEMU starts an ELF file at its entry for PVH
// (CONFIG_PVH). It returns false, and writes nothing, where the kernel is compressed in another way than LZ4.
func extractKernel(bzImage, elf string) (bool, error) {
	image, err := os.ReadFile(bzImage)
	if err != nil {
		return false, err
	}
	payload, err := payloadOf(image)
	if err != nil {
		return false, fmt.Errorf("kernel %s: %w", bzImage, err)
	}
	if !bytes.HasPrefix(payload, lz4Magic) {
		return false, nil
	}
	file, err := os.Create(elf)
	if err != nil {
		return false, err
	}
	_, err = io.Copy(file, lz4.NewReader(bytes.NewReader(payload)))
	if err := errors.Join(err, file.Close()); err != nil {
		return false, fmt.Errorf("kernel %s: %w", bzImage, err)
	}
	return true, nil
}

// payloadOf returns the compressed kernel in a bzImage.
func payloadOf(image []byte) ([]byte, error) {
	if len(image) < headerEnd || !bytes.Equal(image[headerMagic:headerMagic+4], []byte("HdrS")) {
		return nil, errors.New("it is no bzImage")
	}
	begin := (int(image[setupSectors])+1)*512 + int(binary.LittleEndian.Uint32(image[payloadOffset:]))
	end := begin + int(binary.LittleEndian.Uint32(image[payloadLength:])) - 4
	if begin > end || end > len(image) {
		return nil, errors.New("its payload is not within it")
	}
	return image[begin:end], nil
}

// moduleName is the kernel's own name of a module, which has no dash.
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// dependencies reads from a module's file which others must be loaded before it. The file modules.dep would say
// it too, but is made where a kernel is installed.
func dependencies(file string) ([]string, error) {
	object, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", file, err)
	}
	defer object.Close()
	section := object.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("module %s: no section .modinfo", file)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", file, err)
	}
	return parseDependencies(info), nil
}

// parseDependencies reads the field depends of a section .modinfo: strings of the form name=value, each with a
// zero byte at its end.
func parseDependencies(info []byte) []string {
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			return strings.Split(moduleName(list), ",")
		}
	}
	return nil
}

// loadOrder returns modules with all that they depend on, each after what it depends on.
func loadOrder(modules []string, dependencies func(module string) ([]string, error)) ([]string, error) {
	var order []string
	for _, module := range modules {
		if slices.Contains(order, module) {
			continue
		}
		before, err := dependencies(module)
		if err != nil {
			return nil, err
		}
		// The kernel's modules make no circles: it could not load them.
		needed, err := loadOrder(before, dependencies)
		if err != nil {
			return nil, err
		}
		for _, m := range append(needed, module) {
			if !slices.Contains(order, m) {
				order = append(order, m)
			}
		}
	}
	return order, nil
}
