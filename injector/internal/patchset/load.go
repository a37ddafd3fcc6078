package patchset

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Open reads the patch files of a folder, once: a ConfigMap's name carries a hash
// of its content. serverImage goes to the containers that the patches bring
// without one.
func Open(folder, serverImage string) (*Set, error) {
	paths, err := patchFiles(folder)
	if err != nil {
		return nil, err
	}
	set := &Set{serverImage: serverImage}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if err := set.add(filepath.Base(path), data); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if err := set.prove(); err != nil {
		return nil, fmt.Errorf("patches in %s: %w", folder, err)
	}
	return set, nil
}

// add adds a file to the set.
func (s *Set) add(name string, data []byte) error {
	patch, err := decodePatch(data)
	if err != nil {
		return err
	}
	s.addSysctls(takeSysctls(patch))
	s.files = append(s.files, file{name, patch})
	return nil
}

// addSysctls adds to the set's sysctls; a later file overrides an earlier one.
func (s *Set) addSysctls(added []sysctl) {
	for _, wanted := range added {
		i := slices.IndexFunc(s.sysctls, func(earlier sysctl) bool { return earlier.name == wanted.name })
		if i < 0 {
			s.sysctls = append(s.sysctls, wanted)
		} else {
			s.sysctls[i] = wanted
		}
	}
}

// kustomization is the file that makes the ConfigMap of the folder's patches: where
// the folder is the repository's own, it lies beside them.
const kustomization = "kustomization.yaml"

// patchFiles lists the patch files of a folder in name order. Names that begin
// with a dot are the kubelet's own in a mounted ConfigMap.
func patchFiles(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, entry := range entries {
		name := entry.Name()
		if !strings.HasPrefix(name, ".") && name != kustomization && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			paths = append(paths, filepath.Join(folder, name))
		}
	}
	if paths == nil {
		return nil, errors.New("no patch files in " + folder + ": want *.yaml, *.yml or *.json")
	}
	return paths, nil
}
