package patchset

import "log/slog"

// Folder is a folder of patch files, read once: the name of the ConfigMap that it
// is carries a hash, so a change starts the webhook anew.
type Folder struct{ set *Set }

// Open reads the folder at path. serverImage is the image for the containers that
// the patches bring without one.
func Open(path, serverImage string, _ *slog.Logger) (*Folder, error) {
	paths, err := patchFiles(path)
	if err != nil {
		return nil, err
	}
	set, err := load(paths, serverImage)
	if err != nil {
		return nil, err
	}
	return &Folder{set}, nil
}

// Current returns the set to apply.
func (f *Folder) Current() (*Set, error) { return f.set, nil }
