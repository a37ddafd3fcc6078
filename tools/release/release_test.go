package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	"sigs.k8s.io/kustomize/api/types"
)

const repository = "../.."

// tree is a repository of one commit, in which v1.2.3 can be made.
func tree(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"} {
		t.Setenv(name, os.DevNull)
	}
	for _, who := range []string{"AUTHOR", "COMMITTER"} {
		t.Setenv("GIT_"+who+"_NAME", "test")
		t.Setenv("GIT_"+who+"_EMAIL", "test@example.com")
	}
	root := t.TempDir()
	write(t, root, "kustomize/images/kustomization.yaml", "images: [{name: kubevirt-imds-server, newName: registry.example.com/imds/server, newTag: dev}]\n")
	write(t, root, "CHANGELOG.md", "# Changes\n\n## Unreleased\n\n- new\n\n## v1.0.0\n\n- old\n")
	git(t, root, "init", "--quiet")
	commit(t, root)

	// One that is not called.
	programs := t.TempDir()
	write(t, programs, "buildah", "#!/bin/false\n")
	if err := os.Chmod(filepath.Join(programs, "buildah"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", programs+":"+os.Getenv("PATH"))
	return root
}

func write(t *testing.T, root, name, content string) {
	t.Helper()
	name = filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func git(t *testing.T, root string, args ...string) {
	t.Helper()
	if _, err := output(t.Context(), nil, root, "git", args...); err != nil {
		t.Fatal(err)
	}
}

func commit(t *testing.T, root string) {
	t.Helper()
	git(t, root, "add", "--all")
	git(t, root, "commit", "--quiet", "--allow-empty", "--message=change")
}

func TestVersions(t *testing.T) {
	root := tree(t)
	for _, version := range []string{"v0.1.0", "v1.2.3", "v10.20.30-rc.1", "v1.0.0-alpha", "v1.0.0--x", "v1.0.0-0", "v1.0.0-01a", "v1.0.0-" + strings.Repeat("x", 121)} {
		if err := run(t.Context(), root, []string{"check", version}, nil); err != nil {
			t.Errorf("%s: %v", version, err)
		}
	}
	for _, version := range []string{"", "1.2.3", "v1.2", "v1.2.3.4", "v01.2.3", "v1.2.3-", "v1.2.3-rc..1", "v1.2.3+build", "v1.0.0-01", "v1.0.0-" + strings.Repeat("x", 122), "v1.2.3 ", "v1.2.3; true", "../v1.2.3", "latest"} {
		err := run(t.Context(), root, []string{"check", version}, nil)
		if err == nil || !strings.Contains(err.Error(), `"`+version+`"`) || !strings.Contains(err.Error(), "just release v1.2.3") {
			t.Errorf("%q: %v", version, err)
		}
	}
}

// TestRefusals: each names what is in the way, and what to do.
func TestRefusals(t *testing.T) {
	const version = "v1.2.3"
	for name, c := range map[string]struct {
		change func(*testing.T, string)
		want   []string
	}{
		"a changed file": {func(t *testing.T, root string) { write(t, root, "CHANGELOG.md", "") }, []string{"CHANGELOG.md", "commit, or stash"}},
		"a new file":     {func(t *testing.T, root string) { write(t, root, "server/new.go", "") }, []string{"server/", "commit, or stash"}},
		"no section": {func(t *testing.T, root string) {
			write(t, root, "CHANGELOG.md", "# Changes\n\n## Unreleased\n")
			commit(t, root)
		}, []string{"CHANGELOG.md", "write what is new"}},
		"the tag of another commit": {func(t *testing.T, root string) {
			git(t, root, "tag", "--annotate", "--message=release", version)
			commit(t, root)
		}, []string{version, "git checkout v1.2.3"}},
		"a tag before the section has its title": {func(t *testing.T, root string) {
			git(t, root, "tag", version)
		}, []string{version, "rename Unreleased"}},
		"a tag before the images have it": {func(t *testing.T, root string) {
			write(t, root, "CHANGELOG.md", "## v1.2.3\n\n- new\n")
			commit(t, root)
			git(t, root, "tag", version)
		}, []string{"registry.example.com/imds/server", `"dev"`, "just generate"}},
		"no buildah": {func(t *testing.T, root string) {
			git, err := exec.LookPath("git")
			if err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", t.TempDir())
			if err := os.Symlink(git, filepath.Join(os.Getenv("PATH"), "git")); err != nil {
				t.Fatal(err)
			}
		}, []string{"neither docker nor podman", "apt-get install buildah"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := tree(t)
			c.change(t, root)
			err := run(t.Context(), root, []string{"make", version}, nil)
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in: %v", want, err)
				}
			}
			if _, err := os.Stat(filepath.Join(root, "dist")); err == nil {
				t.Error("something was written")
			}
		})
	}
}

// TestTaggedTree: with both kinds of tag, the changes are those of the version.
func TestTaggedTree(t *testing.T) {
	root := tree(t)
	write(t, root, "kustomize/images/kustomization.yaml", "images: [{name: kubevirt-imds-server, newName: registry.example.com/imds/server, newTag: v1.2.3}]\n")
	write(t, root, "CHANGELOG.md", "# Changes\n\n## Unreleased\n\n## v1.2.3\n\n- new\n\n## v1.0.0\n\n- old\n")
	commit(t, root)
	for _, options := range [][]string{{}, {"--force", "--annotate", "--message=release"}} {
		git(t, root, append(append([]string{"tag"}, options...), "v1.2.3")...)
		r, err := open(t.Context(), root, "v1.2.3")
		if err != nil {
			t.Fatal(err)
		}
		if r.changes != "- new\n" {
			t.Errorf("changes %q", r.changes)
		}
	}
}

// TestReleasing walks this repository through a release, as usage says. CI makes a trial version at each step.
func TestReleasing(t *testing.T) {
	const version, trial = "v1234.5.6", "v0.0.0-ci"
	root := tree(t)
	changelog, err := os.ReadFile(filepath.Join(repository, "CHANGELOG.md"))
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(repository, "kustomize/images/kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	images := func(tag string) string {
		return regexp.MustCompile("newTag: .*").ReplaceAllString(string(content), "newTag: "+tag)
	}
	const released = "# Changelog\n\n## " + version + "\n\n- new\n"
	for _, step := range []struct{ name, changelog, images, tag, make string }{
		{"before", string(changelog), images("dev"), "", trial},
		{"tagged", released, images(version), version, trial},
		{"tagged", released, images(version), version, version},
		{"the next commit", released, images("dev"), "", trial},
		{"nothing new yet", strings.Replace(released, "## ", "## Unreleased\n\n## ", 1), images("dev"), "", trial},
	} {
		write(t, root, "CHANGELOG.md", step.changelog)
		write(t, root, "kustomize/images/kustomization.yaml", step.images)
		commit(t, root)
		if step.tag != "" {
			git(t, root, "tag", "--force", step.tag)
		}
		r, err := open(t.Context(), root, step.make)
		if err != nil {
			t.Errorf("%s, %s: %v", step.name, step.make, err)
		} else if step.name != "before" && r.changes != "- new\n" {
			t.Errorf("%s, %s: changes %q", step.name, step.make, r.changes)
		}
	}
}

// TestChangesOutsideOfTheTree: on a release's page, a link leads into the tree of its tag.
func TestChangesOutsideOfTheTree(t *testing.T) {
	root := tree(t)
	write(t, root, "CHANGELOG.md", "## v1.2.3\n\n[a](kustomize/README.md#upgrade), [b](https://example.com/b) [c](#v100)\n[d](./LICENSE), `[e](f)`\n")
	commit(t, root)
	r, err := open(t.Context(), root, "v1.2.3")
	const tagged = source + "/blob/v1.2.3/"
	want := "[a](" + tagged + "kustomize/README.md#upgrade), [b](https://example.com/b) [c](" + tagged + "CHANGELOG.md#v100)\n[d](" + tagged + "LICENSE), `[e](f)`\n"
	if err != nil || r.changes != want {
		t.Errorf("%v, changes\n%swant\n%s", err, r.changes, want)
	}
}

// trial is a release of a copy of the manifests, with digests that no image has.
func trial(t *testing.T) *release {
	t.Helper()
	root := t.TempDir()
	for _, folder := range []string{"kustomize", "overlays"} {
		if err := os.CopyFS(filepath.Join(root, folder), os.DirFS(filepath.Join(repository, folder))); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(filepath.Join(root, "kustomize/images/kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	images, err := readImages(content)
	if err != nil {
		t.Fatal(err)
	}
	for i := range images {
		images[i].Digest = "sha256:" + strings.Repeat(string("ab"[i]), 64)
	}
	return &release{tree: root, version: "v1.2.3", commit: strings.Repeat("c", 40), time: time.Unix(1e9, 0).UTC(), images: images}
}

// TestRenderedAreTheOverlays: but for tag and digest they are what is committed for review.
func TestRenderedAreTheOverlays(t *testing.T) {
	r := trial(t)
	pairs := []string{}
	for _, image := range r.images {
		pairs = append(pairs, image.NewName+":v1.2.3@"+image.Digest, image.NewName+":"+image.NewTag)
	}
	for name, components := range map[string][]string{"cert-manager": nil, "kind": nil, "cert-manager-node-agent": {"node-agent"}, "kind-node-agent": {"node-agent"}} {
		got, err := r.render(strings.TrimSuffix(name, "-node-agent"), components...)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Count(got, []byte("@sha256:")) < 3 {
			t.Errorf("%s: too few digests", name)
		}
		want, err := os.ReadFile(filepath.Join(repository, "tools/generate/testdata/golden", name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.NewReplacer(pairs...).Replace(string(got)) != string(want) {
			t.Errorf("%s differs from the committed one in more than its images", name)
		}
	}
}

// selves puts this test in the place of the programs: it has modules, too.
func selves(t *testing.T, tree string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	for _, architecture := range architectures {
		for _, names := range programs {
			for _, name := range names {
				write(t, tree, "bin/linux-"+architecture+"/"+name, string(content))
			}
		}
	}
}

func TestSBOM(t *testing.T) {
	r := trial(t)
	selves(t, r.tree)
	for _, image := range r.images {
		first, second := r.mustSBOM(t, image), r.mustSBOM(t, image)
		if !bytes.Equal(first, second) {
			t.Errorf("%s is not the same twice", image.Name)
		}
		document, err := spdxjson.Read(bytes.NewReader(first))
		if err != nil {
			t.Fatal(err)
		}
		known, names, licenses := map[string]bool{"DOCUMENT": true}, []string{}, map[string]string{}
		for _, p := range document.Packages {
			if known[string(p.PackageSPDXIdentifier)] {
				t.Errorf("%s is there twice", p.PackageSPDXIdentifier)
			}
			known[string(p.PackageSPDXIdentifier)] = true
			names = append(names, p.PackageName)
			licenses[p.PackageName] = p.PackageLicenseDeclared
		}
		for _, relation := range document.Relationships {
			if !known[string(relation.RefA.ElementRefID)] || !known[string(relation.RefB.ElementRefID)] {
				t.Errorf("%+v is about what is not there", relation)
			}
		}
		for _, want := range append([]string{image.NewName, "stdlib", "sigs.k8s.io/kustomize/api"}, programs[image.Name]...) {
			if !slices.Contains(names, want) {
				t.Errorf("%s: no %s among %v", image.Name, want, names)
			}
		}
		for name, want := range map[string]string{
			image.NewName: "Apache-2.0", "stdlib": "BSD-3-Clause", "sigs.k8s.io/kustomize/api": "Apache-2.0", "github.com/go-errors/errors": "MIT",
			"gopkg.in/evanphx/json-patch.v4": "BSD-3-Clause", "sigs.k8s.io/yaml": noAssertion, // of several
		} {
			if licenses[name] != want {
				t.Errorf("%s: the license of %s is %s, want %s", image.Name, name, licenses[name], want)
			}
		}
	}
}

func (r *release) mustSBOM(t *testing.T, image types.Image) []byte {
	t.Helper()
	content, err := r.sbom(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// TestLicenseTexts: an image has the text of each license in it, once.
func TestLicenseTexts(t *testing.T) {
	root := t.TempDir()
	selves(t, root)
	write(t, root, "LICENSE", "our own\n")
	if err := run(t.Context(), root, []string{"licenses"}, nil); err != nil {
		t.Fatal(err)
	}
	for image := range programs {
		content, err := os.ReadFile(filepath.Join(root, "bin/licenses", target(image)+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"our own", "\nstdlib ", "The Go Authors", "\nsigs.k8s.io/kustomize/api v", "\nsigs.k8s.io/yaml v", "third_party/go-json-experiment/json/LICENSE\n", "Apache License", "Permission is hereby granted"} {
			if !strings.Contains(string(content), want) {
				t.Errorf("%s: no %q", image, want)
			}
		}
		if found := strings.Count(string(content), "TERMS AND CONDITIONS FOR USE, REPRODUCTION"); found > 6 {
			t.Errorf("%s has the Apache license %d times", image, found)
		}
	}
}

// TestProgramsAreThoseOfTheContainerfile: what is in an image is in its SBOM.
func TestProgramsAreThoseOfTheContainerfile(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(repository, "Containerfile"))
	if err != nil {
		t.Fatal(err)
	}
	stages := strings.Split(string(content), "\nFROM scratch AS ")[1:]
	if len(stages) != len(programs) {
		t.Errorf("%d stages, %d images", len(stages), len(programs))
	}
	for _, stage := range stages {
		name, _, _ := strings.Cut(stage, "\n")
		var copied []string
		for _, match := range regexp.MustCompile(`bin/linux-\$\{TARGETARCH\}/(\S+)`).FindAllStringSubmatch(stage, -1) {
			copied = append(copied, match[1])
		}
		if want := programs["kubevirt-imds-"+name]; !slices.Equal(copied, want) {
			t.Errorf("the image %s has %v, its SBOM %v", name, copied, want)
		}
		if text := "bin/licenses/" + name + ".txt /licenses/\n"; !strings.Contains(stage, text) {
			t.Errorf("the image %s has no %s", name, text)
		}
	}
}

func TestWrongCommandLineIsUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"make"}, {"v1.2.3"}, {"push", "v1.2.3"}} {
		if err := run(context.Background(), t.TempDir(), args, nil); err != errUsage {
			t.Errorf("%v: %v", args, err)
		}
	}
}
