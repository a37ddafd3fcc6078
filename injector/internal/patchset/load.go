package patchset

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// load reads the patch files at paths in this order and proves the set on a
// pod. serverImage goes to the containers that the patches bring without one.
func load(paths []string, serverImage string) (*Set, error) {
	set := &Set{serverImage: serverImage}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		patch, err := decodePatch(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		set.addSysctls(takeSysctls(patch))
		set.files = append(set.files, file{name: filepath.Base(path), patch: patch})
	}
	if err := set.prove(); err != nil {
		return nil, fmt.Errorf("patches in %s: %w", filepath.Dir(paths[0]), err)
	}
	return set, nil
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
