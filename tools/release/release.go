package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/semver"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/yaml"
)

// release is a version that can be made of the tree.
type release struct {
	root    string // of the repository
	tree    string // a folder with the commit alone, of which everything is made
	version string
	commit  string
	time    time.Time     // of the commit; nothing in the files depends on another clock
	images  []types.Image // of kustomize/images; the digests are known once they are built
	changes string
}

// longest is what a registry takes as a tag.
const longest = 128

// open finds out whether the version can be made of the repository at root. It writes nothing.
func open(ctx context.Context, root, version string) (*release, error) {
	if !semver.IsValid(version) || semver.Canonical(version) != version || len(version) > longest {
		return nil, fmt.Errorf("version %q is not one of semantic versioning, such as v1.2.3 or v1.2.3-rc.1, without build metadata and of at most %d characters: name such a one, as in: just release v1.2.3", version, longest)
	}
	r := &release{root: root, version: version}
	changed, err := r.git(ctx, "status", "--porcelain", "--untracked-files=normal")
	if err != nil {
		return nil, err
	}
	if changed != "" {
		return nil, fmt.Errorf("the tree is not what is committed: commit, or stash with git stash -u\n%s", changed)
	}
	commit, err := r.git(ctx, "log", "-1", "--format=%H %ct")
	if err != nil {
		return nil, err
	}
	r.commit, commit, _ = strings.Cut(commit, " ")
	seconds, err := strconv.ParseInt(commit, 10, 64)
	if err != nil {
		return nil, err
	}
	r.time = time.Unix(seconds, 0).UTC()

	component, err := r.git(ctx, "cat-file", "blob", r.commit+":kustomize/images/kustomization.yaml")
	if err != nil {
		return nil, err
	}
	if r.images, err = readImages([]byte(component)); err != nil {
		return nil, err
	}
	changelog, err := r.git(ctx, "cat-file", "blob", r.commit+":CHANGELOG.md")
	if err != nil {
		return nil, err
	}
	var own, found bool
	if r.changes, own = section(changelog, version); !own {
		if r.changes, found = section(changelog, ""); !found {
			return nil, fmt.Errorf("CHANGELOG.md has nothing under %q, under Unreleased or under any version: write what is new", version)
		}
	}
	r.changes = absolute(r.changes, source+"/blob/"+version+"/CHANGELOG.md")

	// Without its tag the version is a trial, with the newest changes. With it, whoever applies an overlay of the tag
	// gets these images.
	tagged, err := r.git(ctx, "for-each-ref", "--format=%(objectname) %(*objectname)", "refs/tags/"+version)
	switch {
	case err != nil:
		return nil, err
	case tagged != "" && !strings.HasSuffix(tagged, r.commit) && !strings.HasPrefix(tagged, r.commit):
		return nil, fmt.Errorf("the tag %s is on another commit: check it out with git checkout %[1]s, or choose another version", version)
	case tagged != "" && !own:
		return nil, fmt.Errorf("CHANGELOG.md has no section %q: rename Unreleased to it before the commit is tagged", version)
	}
	for _, image := range r.images {
		if tagged != "" && image.NewTag != version {
			return nil, fmt.Errorf("kustomize/images gives %s the tag %q: make it %q and run just generate before the commit is tagged", image.NewName, image.NewTag, version)
		}
	}
	if _, err := exec.LookPath("buildah"); err != nil {
		return nil, errors.New("buildah is not on the PATH, and a release is built with neither docker nor podman: apt-get install buildah")
	}
	return r, nil
}

// readImages reads the setting that the overlays have their images from.
func readImages(content []byte) ([]types.Image, error) {
	var component types.Kustomization
	err := yaml.UnmarshalStrict(content, &component)
	return component.Images, err
}

// section is the text under a title of a changelog, or under the first one that has text where title is "", and
// whether there is any.
func section(changelog, title string) (string, bool) {
	for _, part := range strings.Split("\n"+changelog, "\n## ")[1:] {
		first, rest, _ := strings.Cut(part, "\n")
		text := strings.TrimSpace(rest)
		if text != "" && (title == "" || title == strings.TrimSpace(first)) {
			return text + "\n", true
		}
	}
	return "", false
}

var codeOrLink = regexp.MustCompile("`[^`]*`|\\]\\([^)\\s]+\\)")

// absolute is the text of a page with its links as they are followed from the page's address.
func absolute(text, page string) string {
	base, err := url.Parse(page)
	return codeOrLink.ReplaceAllStringFunc(text, func(found string) string {
		link, isLink := strings.CutPrefix(found, "](")
		target, errLink := url.Parse(strings.TrimSuffix(link, ")"))
		if !isLink || err != nil || errLink != nil {
			return found
		}
		return "](" + base.ResolveReference(target).String() + ")"
	})
}

// make writes the files.
func (r *release) make(ctx context.Context) error {
	folder := filepath.Join(r.root, "dist", r.version)
	if err := os.RemoveAll(folder); err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	var err error
	if r.tree, err = os.MkdirTemp("", "imds-release-"); err != nil {
		return err
	}
	defer os.RemoveAll(r.tree)
	if err := r.buildPrograms(ctx); err != nil {
		return err
	}
	if err := writeLicenses(ctx, r.tree); err != nil {
		return err
	}
	if err := r.buildImages(ctx, folder); err != nil {
		return err
	}
	var names strings.Builder
	for _, image := range r.images {
		fmt.Fprintf(&names, "%s %s:%s@%s\n", image.Name, image.NewName, r.version, image.Digest)
	}
	files := map[string][]byte{
		"images.txt": []byte(names.String()),
		"changes.md": []byte(r.changes),
	}
	for _, image := range r.images {
		document, err := r.sbom(ctx, image)
		if err != nil {
			return err
		}
		files[image.Name+".spdx.json"] = document
	}
	for _, overlay := range []string{"cert-manager", "kind"} {
		var err error
		if files[overlay+".yaml"], err = r.render(overlay); err != nil {
			return err
		}
		if files[overlay+"-node-agent.yaml"], err = r.render(overlay, "node-agent"); err != nil {
			return err
		}
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o644); err != nil {
			return err
		}
	}
	return writeSums(folder)
}

// writeSums writes SHA256SUMS, as sha256sum --check reads it.
func writeSums(folder string) error {
	entries, err := os.ReadDir(folder) // sorted
	if err != nil {
		return err
	}
	var sums strings.Builder
	for _, entry := range entries {
		content, err := os.ReadFile(filepath.Join(folder, entry.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(content), entry.Name())
	}
	return os.WriteFile(filepath.Join(folder, "SHA256SUMS"), []byte(sums.String()), 0o644)
}

func (r *release) git(ctx context.Context, args ...string) (string, error) {
	return output(ctx, nil, r.root, "git", args...)
}

// output runs a program in a folder, with the environment of this process where none is given, and returns what it
// says, without the last end of line.
func output(ctx context.Context, environment []string, folder, program string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(ctx, program, args...)
	command.Env, command.Dir, command.Stdout, command.Stderr = environment, folder, &stdout, &stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSuffix(stdout.String(), "\n"), nil
}
