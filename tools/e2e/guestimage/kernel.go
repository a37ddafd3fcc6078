package guestimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pierrec/lz4/v4"
)

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
