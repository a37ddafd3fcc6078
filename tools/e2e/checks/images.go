package checks

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
)

// images are those of the Containerfile, by the names that the overlays have for them.
var images = []struct {
	name, entrypoint string
	programs         map[string]string // the package of each
}{
	{"kubevirt-imds-server", "/imds-server", map[string]string{"imds-server": "./server", "imds-init": "./netsetup"}},
	{"kubevirt-imds-webhook", "/imds-webhook", map[string]string{"imds-webhook": "./injector"}},
}

// loadImages builds the images of a repository and gives them to the node, with a tag.
func (s *site) loadImages(ctx context.Context, out io.Writer, repository, tag string) error {
	begin := time.Now()
	for _, made := range images {
		fmt.Fprintf(out, "building the image %s:%s\n", made.name, tag)
		root := filepath.Join(s.folder, "images", tag, made.name)
		for program, folder := range made.programs {
			err := cluster.RunGo(ctx, repository, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w",
				"-o", filepath.Join(root, program), folder)
			if err != nil {
				return err
			}
		}
		// What a container runtime takes a name without registry for; one without a tag is latest.
		err := s.cluster.LoadImage(ctx, cluster.Image{
			Name: "docker.io/library/" + made.name + ":" + tag, User: "65532:65532", Entrypoint: made.entrypoint, Root: os.DirFS(root),
		})
		if err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "the images are on the node after %.1f s\n", time.Since(begin).Seconds())
	return nil
}
