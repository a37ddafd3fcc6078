// Command release makes the files of a release, the same at each run.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
)

const usage = `release makes the files of a release of the repository two folders up. just release runs it.

usage:
  go run . check VERSION
  go run . make VERSION
  go run . licenses

check says whether VERSION, such as v1.2.3 or v1.2.3-rc.1, can be made of the tree as it is. make has just build
the programs of the commit, whatever else is in the folder or set in the environment, and writes into dist/VERSION:

  kubevirt-imds-server.oci.tar     the images, each as an OCI archive of both architectures
  kubevirt-imds-webhook.oci.tar
  images.txt                       their names in the registry, with the digests
  cert-manager.yaml                overlays with those digests, to apply without a clone;
  cert-manager-node-agent.yaml     overlays/manual is not among them: it needs files that just certs makes
  kind.yaml
  kind-node-agent.yaml
  kubevirt-imds-server.spdx.json   what is in each image, with the licenses that are known (SPDX 2.3)
  kubevirt-imds-webhook.spdx.json
  changes.md                       the section of CHANGELOG.md
  SHA256SUMS                       of all of these

licenses writes bin/licenses, with the license texts of what is in the programs in bin/, as just image needs it.

To release: write VERSION as both tags of kustomize/images, rename the section Unreleased of CHANGELOG.md to
VERSION, run just generate, bring it to main, tag that commit VERSION and push the tag. The next commit names the tag
dev again.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, "../..", os.Args[1:], os.Stdout)
	stop()
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("wrong command line")

// run is the program, for the repository at root.
func run(ctx context.Context, root string, args []string, stdout io.Writer) error {
	if slices.Equal(args, []string{"licenses"}) {
		return writeLicenses(ctx, root)
	}
	if len(args) != 2 || args[0] != "check" && args[0] != "make" {
		return errUsage
	}
	r, err := open(ctx, root, args[1])
	if err != nil || args[0] == "check" {
		return err
	}
	if err := r.make(ctx); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "the release is in dist/"+r.version)
	return nil
}
