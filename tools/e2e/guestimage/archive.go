package guestimage

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
)

// Types of files in a cpio archive, as in stat(2).
const (
	typeFolder = 0o040000
	typeFile   = 0o100000
	typeLink   = 0o120000
)

// trailer is the name of the entry that ends an archive.
const trailer = "TRAILER!!!"

// archive writes a cpio archive of the format newc, which is what the kernel unpacks as its first file system
// (Documentation/driver-api/early-userspace/buffer-format.rst). Not compressed: an emulated processor takes
// longer to unpack it than QEMU to read it. All files belong to root and carry no time.
type archive struct {
	to      *bufio.Writer
	entries int
	err     error // the first one; what comes after it is not written
}

func newArchive(to io.Writer) *archive { return &archive{to: bufio.NewWriter(to)} }

// folder, file and link add an entry. A folder comes before what is in it.
func (a *archive) folder(name string)       { a.entry(name, typeFolder|0o755, nil) }
func (a *archive) link(name, target string) { a.entry(name, typeLink|0o777, []byte(target)) }
func (a *archive) file(name string, content []byte, mode fs.FileMode) {
	a.entry(name, typeFile|uint32(mode.Perm()), content)
}

// close ends the archive and returns the first error of all.
func (a *archive) close() error {
	a.entry(trailer, 0, nil)
	if a.err != nil {
		return a.err
	}
	return a.to.Flush()
}

func (a *archive) entry(name string, mode uint32, content []byte) {
	if a.err != nil {
		return
	}
	a.entries++
	fields := []int{
		a.entries, // inode
		int(mode),
		0, 0, // uid, gid
		1, // links
		0, // time
		len(content),
		0, 0, 0, 0, // device of the file, and of the special file that it is
		len(name) + 1,
		0, // checksum, which this format leaves out
	}
	header := "070701"
	for _, field := range fields {
		header += fmt.Sprintf("%08X", field)
	}
	a.padded([]byte(header + name + "\x00"))
	a.padded(content)
}

// padded writes data up to the next multiple of four bytes.
func (a *archive) padded(data []byte) {
	for _, part := range [][]byte{data, make([]byte, -len(data)&3)} {
		if a.err == nil {
			_, a.err = a.to.Write(part)
		}
	}
}
