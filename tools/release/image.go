package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

var architectures = []string{"amd64", "arm64"}

// buildImages makes the OCI archives in folder, and keeps their digests.
func (r *release) buildImages(ctx context.Context, folder string) error {
	// A storage of its own: what is in the user's does not change the result, nor is anything left there.
	storage, err := os.MkdirTemp("", "imds-release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(storage)
	environment, err := r.environment(ctx)
	if err != nil {
		return err
	}
	buildah := func(args ...string) error {
		_, err := output(ctx, environment, r.tree, "buildah", append([]string{
			"--root", filepath.Join(storage, "root"), "--runroot", filepath.Join(storage, "run"), "--storage-driver", "vfs"}, args...)...)
		return err
	}
	for i, image := range r.images {
		// One after the other: built at once, they come in any order into the index.
		for _, architecture := range architectures {
			err := buildah("build", "--manifest", image.Name, "--platform", "linux/"+architecture, "--target", target(image.Name),
				"--build-arg", "VERSION="+r.version, "--build-arg", "REVISION="+r.commit, "--network", "none",
				"--timestamp", strconv.FormatInt(r.time.Unix(), 10), "--identity-label=false", "--file", "Containerfile", ".")
			if err != nil {
				return err
			}
		}
		layout := filepath.Join(storage, "layout", image.Name)
		if err := os.MkdirAll(filepath.Dir(layout), 0o755); err != nil {
			return err
		}
		if err := buildah("manifest", "push", "--all", "--format", "oci", image.Name, "oci:"+layout+":"+image.NewName+":"+r.version); err != nil {
			return err
		}
		if r.images[i].Digest, err = digest(layout); err != nil {
			return err
		}
		if err := r.archive(layout, filepath.Join(folder, image.Name+".oci.tar")); err != nil {
			return err
		}
	}
	return nil
}

// target is the Containerfile's, of an image of the base.
func target(image string) string { return strings.TrimPrefix(image, "kubevirt-imds-") }

// digest is that of the only image in an OCI layout.
func digest(layout string) (string, error) {
	content, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		return "", err
	}
	var index struct {
		Manifests []struct{ Digest string }
	}
	if err := json.Unmarshal(content, &index); err != nil {
		return "", err
	}
	if len(index.Manifests) != 1 {
		return "", fmt.Errorf("%d images in %s, want 1", len(index.Manifests), layout)
	}
	return index.Manifests[0].Digest, nil
}

// archive writes an OCI layout as a tar file with the commit's time, in the order of the names. buildah's own
// archives have the time at which they are made.
func (r *release) archive(layout, name string) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	defer file.Close()
	writer := tar.NewWriter(file)
	err = fs.WalkDir(os.DirFS(layout), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(filepath.Join(layout, path))
		if err != nil {
			return err
		}
		if err := writer.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(content)), ModTime: r.time}); err != nil {
			return err
		}
		_, err = writer.Write(content)
		return err
	})
	if err != nil {
		return err
	}
	if err := writer.Close(); err != nil {
		return err
	}
	return file.Close()
}
