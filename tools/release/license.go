package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/licensecheck"
	mod "golang.org/x/mod/module"
)

// module is one that is linked into a program.
type module struct{ path, version string }

// The standard library is no module, but has a version, a license and, at times, faults.
const standardLibrary = "stdlib"

// modulesOf are those in a program, as the Go linker has written them into it.
func modulesOf(program []byte) ([]module, error) {
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		return nil, err
	}
	modules := []module{{standardLibrary, strings.TrimPrefix(info.GoVersion, "go")}}
	for _, dependency := range info.Deps {
		if dependency.Replace != nil {
			dependency = dependency.Replace
		}
		modules = append(modules, module{dependency.Path, dependency.Version})
	}
	return modules, nil
}

// sources is where the Go that builds has the modules.
type sources struct{ standard, modules string }

func findSources(ctx context.Context, folder string) (sources, error) {
	out, err := output(ctx, nil, folder, "go", "env", "GOROOT", "GOMODCACHE")
	standard, modules, _ := strings.Cut(out, "\n")
	return sources{standard, modules}, err
}

var licenseFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents)([.-][\w.-]+)?$`)

// texts are a module's license files, by their paths in it.
func (s sources) texts(m module) (map[string]string, error) {
	if m.path == standardLibrary {
		text, err := os.ReadFile(filepath.Join(s.standard, "LICENSE"))
		return map[string]string{"LICENSE": string(text)}, err
	}
	path, err := mod.EscapePath(m.path)
	if err != nil {
		return nil, err
	}
	version, err := mod.EscapeVersion(m.version)
	if err != nil {
		return nil, err
	}
	folder, found := filepath.Join(s.modules, path+"@"+version), map[string]string{}
	err = fs.WalkDir(os.DirFS(folder), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !licenseFile.MatchString(entry.Name()) || strings.HasSuffix(name, ".go") {
			return err
		}
		text, err := os.ReadFile(filepath.Join(folder, name))
		found[name] = string(text)
		return err
	})
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("module %s@%s has no license file: say in tools/release what its license is, or do without the module", m.path, m.version)
	}
	return found, err
}

// declared is the SPDX identifier of a module's license, where its only license file is the text of one that is named
// here and of no other.
func (s sources) declared(m module) (string, error) {
	texts, err := s.texts(m)
	if err != nil {
		return "", err
	}
	found := map[string]bool{}
	for name, text := range texts {
		if strings.Contains(name, "/") || !strings.HasPrefix(strings.ToLower(name), "licen") {
			continue
		}
		coverage := licensecheck.Scan([]byte(text))
		for _, match := range coverage.Match {
			found[match.ID] = true
		}
		if coverage.Percent < 90 {
			found[noAssertion] = true
		}
	}
	if ids := slices.Collect(maps.Keys(found)); len(ids) == 1 && slices.Contains([]string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT"}, ids[0]) {
		return ids[0], nil
	}
	return noAssertion, nil
}

// writeLicenses writes, for each image, bin/licenses/TARGET.txt of the tree: our license and those of the modules in
// its programs, each text once. The programs are those of the architectures that have been built.
func writeLicenses(ctx context.Context, tree string) error {
	s, err := findSources(ctx, tree)
	if err != nil {
		return err
	}
	own, err := os.ReadFile(filepath.Join(tree, "LICENSE"))
	if err != nil {
		return err
	}
	folder := filepath.Join(tree, "bin/licenses")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for image, names := range programs {
		texts := map[string][]string{} // what a text is for
		for _, name := range names {
			files, err := filepath.Glob(filepath.Join(tree, "bin/linux-*", name))
			if err != nil {
				return err
			}
			if len(files) == 0 {
				return fmt.Errorf("there is no bin/linux-*/%s: run just build", name)
			}
			for _, file := range files {
				if err := s.add(texts, file); err != nil {
					return err
				}
			}
		}
		var sections []string
		for text, modules := range texts {
			slices.Sort(modules)
			sections = append(sections, strings.Join(slices.Compact(modules), "\n")+"\n\n"+strings.TrimSpace(text)+"\n")
		}
		slices.Sort(sections)
		const line = "\n--------------------------------------------------------------------------------\n\n"
		all := "KubeVirt IMDS\n\n" + strings.TrimSpace(string(own)) + "\n" + line + strings.Join(sections, line)
		if err := os.WriteFile(filepath.Join(folder, target(image)+".txt"), []byte(all), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// add adds the license texts of a program's modules, and for what they are.
func (s sources) add(texts map[string][]string, program string) error {
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	modules, err := modulesOf(content)
	if err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	for _, m := range modules {
		files, err := s.texts(m)
		if err != nil {
			return err
		}
		for name, text := range files {
			texts[text] = append(texts[text], fmt.Sprintf("%s %s: %s", m.path, m.version, name))
		}
	}
	return nil
}
