// Package image writes a container image from a file tree, without a daemon and without a network: an OCI
// image layout in a tar file, which containerd, podman, buildah and skopeo import.
//
// It is deterministic: the same tree and settings give the same bytes, hence the same digest.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
)

// Media types of the OCI image specification 1.1.
const (
	mediaTypeIndex    = "application/vnd.oci.image.index.v1+json"
	mediaTypeManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaTypeConfig   = "application/vnd.oci.image.config.v1+json"
	mediaTypeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// Config is how a container of the image starts, by the names of the OCI image specification.
type Config struct {
	User       string   `json:"User,omitempty"`
	Env        []string `json:"Env,omitempty"`
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Cmd        []string `json:"Cmd,omitempty"`
	WorkingDir string   `json:"WorkingDir,omitempty"`
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// Write writes an image for this machine's architecture to w. Its name is a full reference, such as
// localhost/guest:1; its one layer is the tree, whose files all belong to root and carry no time, with their
// modes kept. It returns the digest of the manifest.
func Write(w io.Writer, name string, config Config, tree fs.FS) (digest string, err error) {
	layer, err := writeLayer(tree)
	if err != nil {
		return "", fmt.Errorf("layer of image %s: %w", name, err)
	}
	here := platform{Architecture: runtime.GOARCH, OS: "linux"}

	configuration, err := json.Marshal(struct {
		platform
		Config Config `json:"config"`
		RootFS any    `json:"rootfs"`
	}{here, config, map[string]any{"type": "layers", "diff_ids": []string{digestOf(layer)}}})
	if err != nil {
		return "", fmt.Errorf("configuration of image %s: %w", name, err)
	}

	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     mediaTypeManifest,
		"config":        describe(mediaTypeConfig, configuration),
		"layers":        []descriptor{describe(mediaTypeLayer, layer)},
	})
	if err != nil {
		return "", fmt.Errorf("manifest of image %s: %w", name, err)
	}

	entry := describe(mediaTypeManifest, manifest)
	entry.Platform = &here
	entry.Annotations = map[string]string{
		"io.containerd.image.name":          name,
		"org.opencontainers.image.ref.name": name,
	}
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     mediaTypeIndex,
		"manifests":     []descriptor{entry},
	})
	if err != nil {
		return "", fmt.Errorf("index of image %s: %w", name, err)
	}

	archive := tar.NewWriter(w)
	for _, file := range []struct {
		name    string
		content []byte
	}{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", index},
		{blobPath(manifest), manifest},
		{blobPath(configuration), configuration},
		{blobPath(layer), layer},
	} {
		header := &tar.Header{Name: file.name, Mode: 0o644, Size: int64(len(file.content))}
		if err := writeEntry(archive, header, file.content); err != nil {
			return "", fmt.Errorf("image %s: %w", name, err)
		}
	}
	if err := archive.Close(); err != nil {
		return "", fmt.Errorf("image %s: %w", name, err)
	}
	return entry.Digest, nil
}

// writeLayer returns the tree as a tar, in lexical order.
func writeLayer(tree fs.FS) ([]byte, error) {
	var layer bytes.Buffer
	archive := tar.NewWriter(&layer)
	err := fs.WalkDir(tree, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		header, content, err := describeFile(tree, path, info)
		if err != nil {
			return err
		}
		return writeEntry(archive, header, content)
	})
	return layer.Bytes(), errors.Join(err, archive.Close())
}

// describeFile returns the tar header of one file of the tree, with nothing in it that depends on who made
// the file and when, and the file's content.
func describeFile(tree fs.FS, path string, info fs.FileInfo) (*tar.Header, []byte, error) {
	switch info.Mode().Type() {
	case fs.ModeDir, fs.ModeSymlink, 0:
	default:
		return nil, nil, fmt.Errorf("%s is a %s: only files, folders and symbolic links go into an image", path, info.Mode().Type())
	}
	var target string
	var content []byte
	var err error
	switch info.Mode().Type() {
	case fs.ModeSymlink:
		target, err = fs.ReadLink(tree, path)
	case 0:
		content, err = fs.ReadFile(tree, path)
	}
	if err != nil {
		return nil, nil, err
	}
	made, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return nil, nil, err
	}
	header := &tar.Header{Typeflag: made.Typeflag, Name: path, Linkname: target, Mode: made.Mode, Size: int64(len(content))}
	if info.IsDir() {
		header.Name += "/"
	}
	return header, content, nil
}

func writeEntry(archive *tar.Writer, header *tar.Header, content []byte) error {
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := archive.Write(content)
	return err
}

func describe(mediaType string, content []byte) descriptor {
	return descriptor{MediaType: mediaType, Digest: digestOf(content), Size: len(content)}
}

func digestOf(content []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(content)) }

func blobPath(content []byte) string { return fmt.Sprintf("blobs/sha256/%x", sha256.Sum256(content)) }
