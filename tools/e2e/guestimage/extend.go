package guestimage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// Extras are what a guest has that is more than a guest, such as a node.
type Extras struct {
	// Programs are files of this machine, by their paths in the guest, such as node for /node.
	Programs map[string]string
	// Modules are not loaded before the guest's shell runs "load NAME". Those that a list needs are with it, but
	// for those that the lists ahead of it have.
	Modules []ModuleList
}

// ModuleList has a name.
type ModuleList struct {
	Name    string
	Modules []string
}

// loadScript loads a list.
const loadScript = `#!/bin/sh
while read -r module; do insmod "$module" || exit; done <"/lib/$1"
`

// Extend makes an image that has extras. Its initramfs is a file of its own, which begins with the image's: the
// kernel unpacks one archive after the other.
func (i Image) Extend(initramfs string, extras Extras) (Image, error) {
	to, err := os.Create(initramfs)
	if err != nil {
		return Image{}, err
	}
	err = i.writeExtended(to, extras)
	if err := errors.Join(err, to.Close()); err != nil {
		return Image{}, fmt.Errorf("initramfs of the guest: %w", err)
	}
	return Image{Kernel: i.Kernel, Initramfs: initramfs}, nil
}

func (i Image) writeExtended(to io.Writer, extras Extras) error {
	base, err := os.Open(i.Initramfs)
	if err != nil {
		return err
	}
	defer base.Close()
	if _, err := io.Copy(to, base); err != nil {
		return err
	}
	out := newArchive(to)
	for name, file := range extras.Programs {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		out.file(name, content, 0o755)
	}
	out.file("bin/load", []byte(loadScript), 0o755)
	loaded, err := moduleFiles(filepath.Dir(i.Kernel), modules["lib/boot"])
	if err != nil {
		return err
	}
	for _, list := range extras.Modules {
		files, err := moduleFiles(filepath.Dir(i.Kernel), list.Modules)
		if err != nil {
			return err
		}
		files = slices.DeleteFunc(files, func(file string) bool { return slices.Contains(loaded, file) })
		if err := out.modules(list.Name, files); err != nil {
			return err
		}
		loaded = append(loaded, files...)
	}
	return out.close()
}

// modules adds files of modules, and the list of them in their order, by its name.
func (a *archive) modules(list string, files []string) error {
	var order bytes.Buffer
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name := path.Join("lib", filepath.Base(file))
		a.file(name, content, 0o644)
		fmt.Fprintf(&order, "/%s\n", name)
	}
	a.file(path.Join("lib", list), order.Bytes(), 0o644)
	return nil
}
