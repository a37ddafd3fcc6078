package rootfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pierrec/lz4/v4"
)

func TestModulesAreLoadedAfterWhatTheyNeed(t *testing.T) {
	needs := map[string][]string{
		"virtio_net":     {"virtio", "virtio_ring", "net_failover"},
		"net_failover":   {"failover"},
		"virtio":         {"virtio_ring"},
		"virtio_console": {"virtio_ring", "virtio"},
		"failover":       nil, "virtio_ring": nil,
	}
	order, err := loadOrder([]string{"virtio_console", "virtio_net"}, func(name string) ([]string, error) {
		before, ok := needs[name]
		if !ok {
			t.Errorf("asked for %q", name)
		}
		return before, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"virtio_ring", "virtio", "virtio_console", "failover", "net_failover", "virtio_net"}
	if !slices.Equal(order, want) {
		t.Errorf("order %q, want %q", order, want)
	}
}

func TestModuleThatIsNotThereIsAnError(t *testing.T) {
	missing := errors.New("the kernel's package has no module virtio_net")
	_, err := loadOrder([]string{"virtio_net"}, func(string) ([]string, error) { return nil, missing })
	if err != missing {
		t.Errorf("error %v, want %v", err, missing)
	}
}

func TestDependenciesOfAModule(t *testing.T) {
	for _, test := range []struct {
		name, info string
		want       []string
	}{
		{"several", "license=GPL\x00depends=virtio,virtio_ring\x00name=x\x00", []string{"virtio", "virtio_ring"}},
		{"with a dash", "depends=crc-ccitt\x00", []string{"crc_ccitt"}},
		{"none", "depends=\x00license=GPL\x00", nil},
		{"no field, since it is no module", "license=GPL\x00", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := parseDependencies([]byte(test.info)); !slices.Equal(got, test.want) {
				t.Errorf("dependencies %q, want %q", got, test.want)
			}
		})
	}
}

// bzImage puts a payload where a kernel's file has it.
func bzImage(payload []byte) []byte {
	const offset = 0x100
	image := make([]byte, 2*512+offset)
	image[setupSectors] = 1
	copy(image[headerMagic:], "HdrS")
	binary.LittleEndian.PutUint32(image[payloadOffset:], offset)
	binary.LittleEndian.PutUint32(image[payloadLength:], uint32(len(payload)+4))
	return append(append(image, payload...), 1, 2, 3, 4, 'r', 'e', 's', 't')
}

func write(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestKernelIsTakenOutOfItsFile(t *testing.T) {
	var payload bytes.Buffer
	compress := lz4.NewWriter(&payload)
	if err := compress.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	kernel := bytes.Repeat([]byte("\x7fELF and more"), 1000)
	compress.Write(kernel)
	if err := compress.Close(); err != nil {
		t.Fatal(err)
	}
	elf := filepath.Join(t.TempDir(), "kernel")
	extracted, err := extractKernel(write(t, bzImage(payload.Bytes())), elf)
	if err != nil || !extracted {
		t.Fatalf("extracted %v, %v", extracted, err)
	}
	if got, err := os.ReadFile(elf); err != nil || !bytes.Equal(got, kernel) {
		t.Errorf("%d bytes (%v), want the kernel's %d", len(got), err, len(kernel))
	}
}

func TestKernelThatIsCompressedInAnotherWayStaysInItsFile(t *testing.T) {
	elf := filepath.Join(t.TempDir(), "kernel")
	extracted, err := extractKernel(write(t, bzImage([]byte("\x28\xb5\x2f\xfd zstd"))), elf)
	if err != nil || extracted {
		t.Errorf("extracted %v, %v", extracted, err)
	}
	if _, err := os.Stat(elf); err == nil {
		t.Error("there is a file")
	}
}

func TestFileThatIsNoKernelIsAnError(t *testing.T) {
	short := bzImage([]byte("payload"))
	for name, content := range map[string][]byte{
		"empty":     nil,
		"something": bytes.Repeat([]byte("x"), 2000),
		"cut off":   short[:len(short)-12],
	} {
		t.Run(name, func(t *testing.T) {
			_, err := extractKernel(write(t, content), filepath.Join(t.TempDir(), "kernel"))
			if err == nil || !strings.Contains(err.Error(), "vmlinuz") {
				t.Errorf("error %v, want one that names the file", err)
			}
		})
	}
}
