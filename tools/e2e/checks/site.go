package checks

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/kube"
)

const (
	tenant     = "kubevirt-imds-e2e" // the namespace of the VMs
	namespaces = "/api/v1/namespaces"
)

// site is where the product is installed and checked: a cluster with KubeVirt's kinds and the product's images.
type site struct {
	api        *kube.Client
	command    commander
	cluster    *cluster.Cluster // nil: one that was there before, whose nodes cannot be looked into
	repository string
	folder     string // for what is made here; it has a copy of the manifests
}

// commander makes the command of a program that reaches the API by KUBECONFIG.
type commander func(ctx context.Context, name string, args ...string) *exec.Cmd

// reaching is the commander for a kubeconfig.
func reaching(kubeconfig string) commander {
	return func(ctx context.Context, name string, args ...string) *exec.Cmd {
		command := exec.CommandContext(ctx, name, args...)
		command.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
		return command
	}
}

// openSite makes the site in a cluster that is there for this alone.
func openSite(ctx context.Context, c *cluster.Cluster, out io.Writer) (*site, error) {
	s := &site{cluster: c, command: c.Command}
	if err := s.open(ctx, c.DialContext); err != nil {
		return nil, err
	}
	names, err := overlayImages(s.repository)
	if err == nil {
		err = s.loadImages(ctx, out, s.repository, names)
	}
	if err == nil {
		err = s.makeKinds(ctx)
	}
	if err == nil {
		err = s.makeNamespace(ctx, tenant)
	}
	if err != nil {
		return nil, errors.Join(err, s.close(ctx))
	}
	return s, nil
}

// openForeignSite makes the site in a cluster that was there before, with the kinds and the images in it. The command
// and the dialer, which may be nil, are of who reaches it.
func openForeignSite(ctx context.Context, command commander, dial dialer) (*site, error) {
	s := &site{command: command}
	if err := s.open(ctx, dial); err != nil {
		return nil, err
	}
	if err := s.makeNamespace(ctx, tenant); err != nil {
		return nil, errors.Join(err, s.close(ctx))
	}
	return s, nil
}

// open connects to the API, finds the repository and copies its manifests.
func (s *site) open(ctx context.Context, dial dialer) error {
	kubeconfig, err := s.kubectl(ctx, "config", "view", "--raw", "--minify", "--flatten")
	if err != nil {
		return err
	}
	config, err := clientcmd.RESTConfigFromKubeConfig([]byte(kubeconfig))
	if err != nil {
		return err
	}
	config.Dial = dial
	if s.api, err = kube.New(config); err != nil {
		return err
	}
	if s.repository, err = cluster.Repository(ctx); err != nil {
		return err
	}
	if s.folder, err = os.MkdirTemp("", "kubevirt-imds-checks-"); err != nil {
		return err
	}
	for _, name := range []string{"kustomize", "overlays"} {
		if err := copyManifests(filepath.Join(s.folder, name), filepath.Join(s.repository, name)); err != nil {
			return errors.Join(err, os.RemoveAll(s.folder))
		}
	}
	return nil
}

// copyManifests copies a folder, without the files that the user may have made with just certs.
func copyManifests(to, from string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(to, "manual", "tls"))
}

// makeNamespace makes a namespace in which pods can be created.
func (s *site) makeNamespace(ctx context.Context, name string) error {
	if _, err := kube.Create(ctx, s.api, namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
		return err
	}
	// Before its ServiceAccount is there, the API server takes no pod.
	_, err := kube.Await(ctx, s.api, namespaces+"/"+name+"/serviceaccounts", "default", patience, func(*corev1.ServiceAccount) string { return "" })
	return err
}

// close removes what was made here. A cluster that is there for this alone takes its part with it.
func (s *site) close(ctx context.Context) error {
	err := os.RemoveAll(s.folder)
	if s.cluster == nil {
		err = errors.Join(err, s.api.Delete(ctx, namespaces+"/"+tenant))
	}
	return err
}

// kubectl runs kubectl and returns its standard output. A warning is an error.
func (s *site) kubectl(ctx context.Context, args ...string) (string, error) {
	return s.kubectlWith(ctx, "", args...)
}

// kubectlWith is kubectl with a standard input.
func (s *site) kubectlWith(ctx context.Context, input string, args ...string) (string, error) {
	var output, complaint bytes.Buffer
	command := s.command(ctx, "kubectl", args...)
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

// check ends a test if there is an error.
func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

//go:embed kinds.yaml
var kinds string

// makeKinds gives the API the kinds of KubeVirt and cert-manager.
func (s *site) makeKinds(ctx context.Context) error {
	if _, err := s.kubectlWith(ctx, kinds, "apply", "--filename=-"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "wait", "--for=condition=Established", "--timeout="+patience.String(), "crd", "--all"); err != nil {
		return err
	}
	// A kind is established a moment before its objects can be listed, and nothing tells when they can.
	return kube.Poll(ctx, patience, func(ctx context.Context) (string, error) {
		if _, err := s.takeSnapshot(ctx); err != nil {
			return err.Error(), nil
		}
		return "", nil
	})
}

// images are those of the Containerfile, by the names that kustomize/base has for them.
var images = []struct {
	name, entrypoint string
	programs         map[string]string // the package of each
}{
	{"kubevirt-imds-server", "/imds-server", map[string]string{"imds-server": "./server", "imds-init": "./netsetup"}},
	{"kubevirt-imds-webhook", "/imds-webhook", map[string]string{"imds-webhook": "./injector"}},
}

// overlayImages are the images that the overlays of a repository name, by their names in its base.
func overlayImages(repository string) (map[string]string, error) {
	content, err := os.ReadFile(filepath.Join(repository, "kustomize/images/kustomization.yaml"))
	if err != nil {
		return nil, err
	}
	var component struct {
		Images []struct{ Name, NewName, NewTag string }
	}
	if err := yaml.Unmarshal(content, &component); err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, image := range component.Images {
		names[image.Name] = image.NewName + ":" + image.NewTag
	}
	return names, nil
}

// loadImages builds the images of a repository and gives them to the node, by names with registry and tag.
func (s *site) loadImages(ctx context.Context, out io.Writer, repository string, names map[string]string) error {
	begin := time.Now()
	for _, made := range images {
		name := names[made.name]
		fmt.Fprintf(out, "building the image %s\n", name)
		root := filepath.Join(s.folder, "images", name)
		for program, folder := range made.programs {
			err := cluster.RunGo(ctx, repository, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w",
				"-o", filepath.Join(root, program), folder)
			if err != nil {
				return err
			}
		}
		err := s.cluster.LoadImage(ctx, cluster.Image{Name: name, User: "65532:65532", Entrypoint: made.entrypoint, Root: os.DirFS(root)})
		if err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "the images are on the node after %.1f s\n", time.Since(begin).Seconds())
	return nil
}

// snapshot is the objects in the cluster, as collection/namespace/name.
type snapshot map[string]bool

// passing are objects that come and go by themselves.
var passing = []string{"events", "leases"}

// takeSnapshot lists all objects or, in a cluster that others use meanwhile, those of the product and of the checks.
func (s *site) takeSnapshot(ctx context.Context) (snapshot, error) {
	collections, err := listCollections(ctx, s.api)
	if err != nil {
		return nil, err
	}
	all := snapshot{}
	for _, collection := range collections {
		list, err := kube.Get[metav1.PartialObjectMetadataList](ctx, s.api, collection)
		if err != nil {
			return nil, err
		}
		for _, item := range list.Items {
			if s.cluster != nil || isOurs(item) {
				all[collection+" "+item.Namespace+"/"+item.Name] = true
			}
		}
	}
	return all, nil
}

func isOurs(item metav1.PartialObjectMetadata) bool {
	return item.Namespace == namespace || item.Namespace == tenant || item.Labels["app.kubernetes.io/part-of"] == "kubevirt-imds"
}

// less returns what is in s and not in other, sorted.
func (s snapshot) less(other snapshot) []string {
	var more []string
	for _, object := range slices.Sorted(maps.Keys(s)) {
		if !other[object] {
			more = append(more, object)
		}
	}
	return more
}

// listCollections returns the path of every collection of the API that can be listed, in one version each.
func listCollections(ctx context.Context, api *kube.Client) ([]string, error) {
	groups, err := kube.Get[metav1.APIGroupList](ctx, api, "/apis")
	if err != nil {
		return nil, err
	}
	versions := []string{"/api/v1"}
	for _, group := range groups.Groups {
		versions = append(versions, "/apis/"+group.PreferredVersion.GroupVersion)
	}
	var collections []string
	for _, version := range versions {
		resources, err := kube.Get[metav1.APIResourceList](ctx, api, version)
		if err != nil {
			return nil, err
		}
		for _, resource := range resources.APIResources {
			if slices.Contains(resource.Verbs, "list") && !strings.Contains(resource.Name, "/") && !slices.Contains(passing, resource.Name) {
				collections = append(collections, version+"/"+resource.Name)
			}
		}
	}
	return collections, nil
}
