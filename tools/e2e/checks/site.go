package checks

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/image"
	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

// The images, by the full names of what the manifests call kubevirt-imds-server and kubevirt-imds-webhook.
const (
	serverImage  = "docker.io/library/kubevirt-imds-server:latest"
	webhookImage = "docker.io/library/kubevirt-imds-webhook:latest"
)

// tenants are the namespaces of the VMs.
var tenants = []string{"tenant-a", "databases"}

//go:embed crds.yaml
var crds string

// site is the cluster as it is before anything of the product is installed, and what the checks need of the
// repository.
type site struct {
	cluster    *cluster.Cluster
	api        *kube.Client
	repository string
	folder     string // for what is made here; it has a copy of the manifests
}

// prepare builds the images and gives them to the node, copies the manifests, and makes the namespaces and kinds
// that a cluster with KubeVirt has.
func prepare(ctx context.Context, c *cluster.Cluster, out io.Writer) (*site, error) {
	repository, err := cluster.Repository(ctx)
	if err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp("", "kubevirt-imds-checks-")
	if err != nil {
		return nil, err
	}
	s := &site{cluster: c, api: kube.New(c.API()), repository: repository, folder: folder}
	if err := s.fill(ctx, out); err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	return s, nil
}

func (s *site) fill(ctx context.Context, out io.Writer) error {
	begin := time.Now()
	for _, made := range []struct {
		name     string
		programs map[string]string // the package of each
		start    string
	}{
		{serverImage, map[string]string{"imds-server": "./server", "imds-init": "./netsetup"}, "/imds-server"},
		{webhookImage, map[string]string{"imds-webhook": "./injector"}, "/imds-webhook"},
	} {
		fmt.Fprintf(out, "building the image %s\n", made.name)
		if err := s.loadImage(ctx, made.name, made.programs, made.start); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "the images are on the node after %.1fs\n", time.Since(begin).Seconds())

	// Without the files that the user may have made with just certs.
	for _, name := range []string{"kustomize", "overlays"} {
		if err := copyFolder(filepath.Join(s.folder, name), filepath.Join(s.repository, name), "tls"); err != nil {
			return err
		}
	}
	if _, err := s.kubectlWith(ctx, crds, "apply", "-f", "-"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"); err != nil {
		return err
	}
	if err := s.awaitStorage(ctx); err != nil {
		return err
	}
	for _, name := range tenants {
		if _, err := kube.Create(ctx, s.api, "/api/v1/namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			return err
		}
		// No pod can be created in a namespace before its ServiceAccount and, for those with a token, its ConfigMap of the CA are there.
		_, err := kube.Await(ctx, s.api, "/api/v1/namespaces/"+name+"/serviceaccounts", "default", patience,
			func(*corev1.ServiceAccount) string { return "" })
		if err != nil {
			return err
		}
	}
	return nil
}

// awaitStorage returns when every kind can be listed: a new one is established a moment before that, and nothing
// tells.
func (s *site) awaitStorage(ctx context.Context) error {
	const pause = 50 * time.Millisecond
	deadline := time.Now().Add(patience)
	for {
		_, err := takeSnapshot(ctx, s.api)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause)
	}
}

// loadImage builds static programs of the repository, as just build does, into an image.
func (s *site) loadImage(ctx context.Context, name string, programs map[string]string, entrypoint string) error {
	root := filepath.Join(s.folder, "images", strings.ReplaceAll(name, "/", "_"))
	for program, folder := range programs {
		err := cluster.RunGo(ctx, s.repository, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version=e2e",
			"-o", filepath.Join(root, program), folder)
		if err != nil {
			return err
		}
	}
	archive, err := os.Create(root + ".tar")
	if err != nil {
		return err
	}
	_, err = image.Write(archive, name, image.Config{User: "65532:65532", Entrypoint: []string{entrypoint}}, os.DirFS(root))
	if err := errors.Join(err, archive.Close()); err != nil {
		return err
	}
	return s.cluster.LoadImage(ctx, archive.Name())
}

// copyFolder copies a folder without the folders of a name.
func copyFolder(to, from, without string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	return filepath.WalkDir(to, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.IsDir() || entry.Name() != without {
			return err
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		return filepath.SkipDir
	})
}

// kubectl runs kubectl in the cluster and returns its standard output. A warning is an error.
func (s *site) kubectl(ctx context.Context, args ...string) (string, error) {
	return s.kubectlWith(ctx, "", args...)
}

// kubectlWith is kubectl with a standard input.
func (s *site) kubectlWith(ctx context.Context, input string, args ...string) (string, error) {
	var output, complaint bytes.Buffer
	command := s.cluster.Command(ctx, "kubectl", args...)
	command.Stdin = strings.NewReader(input)
	command.Stdout, command.Stderr = &output, &complaint
	err := command.Run()
	if err == nil && complaint.Len() > 0 {
		err = errors.New("it succeeds, but complains")
	}
	if err != nil {
		return output.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return output.String(), nil
}
