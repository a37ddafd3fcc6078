package cluster

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Image is a container image that is made of a file tree.
type Image struct {
	Name       string // with registry and tag
	User       string // empty: root
	Entrypoint string
	Root       fs.FS
}

// LoadImage gives the node an image.
func (c *Cluster) LoadImage(ctx context.Context, image Image) error {
	archive, err := image.archive()
	if err != nil {
		return fmt.Errorf("image %s: %w", image.Name, err)
	}
	command := c.Command(ctx, "ctr", "images", "import", "-")
	command.Stdin = archive
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("load image %s: %w: %s", image.Name, err, output)
	}
	return nil
}

// archive is the image as docker save writes it.
func (i Image) archive() (*bytes.Buffer, error) {
	var layer, archive bytes.Buffer
	files := tar.NewWriter(&layer)
	if err := files.AddFS(i.Root); err != nil {
		return nil, err
	}
	if err := files.Close(); err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, static.NewLayer(layer.Bytes(), types.DockerUncompressedLayer))
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{User: i.User, Entrypoint: []string{i.Entrypoint}}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return nil, err
	}
	tag, err := name.NewTag(i.Name)
	if err != nil {
		return nil, err
	}
	return &archive, tarball.Write(tag, image, &archive)
}
