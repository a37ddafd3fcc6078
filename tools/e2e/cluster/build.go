package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/example/kubevirt-imds/tools/e2e/image"
)

const (
	cacheName  = "kubevirt-imds-e2e"
	pauseImage = "localhost/pause:1"
	pauseFile  = "pause.tar"
)

// components are the names under which the one binary of Kubernetes is called.
var components = []string{
	"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
}

// sources are the files of this module that decide what Build makes; a change in one of them means another
// build.
var sources = []string{
	"kubernetes/go.mod", "kubernetes/go.sum", "kubernetes/main.go",
	"runtime/go.mod", "runtime/go.sum",
	"pause/main.go", "image/image.go", "cluster/build.go", "cluster/gocommand.go",
}

// Programs is a finished build: a folder with every program that a cluster needs and that can be had as a Go
// module.
type Programs struct {
	Folder string
}

func (p Programs) path(name string) string { return filepath.Join(p.Folder, name) }

// Build compiles Kubernetes, etcd, containerd and the CNI plugins into the user's cache folder, or returns
// at once where that is done. It needs the go command and, the first time, a module proxy; it takes minutes
// then and says how far it is. Of two builds at once the second waits for the first.
func Build(ctx context.Context, messages io.Writer) (Programs, error) {
	source, err := sourceFolder(ctx)
	if err != nil {
		return Programs{}, err
	}
	key, err := buildKey(ctx, source)
	if err != nil {
		return Programs{}, err
	}
	cache, err := CacheFolder()
	if err != nil {
		return Programs{}, fmt.Errorf("folder for the build: %w", err)
	}
	b := &build{source: source, folder: filepath.Join(cache, key+".unfinished"), progress: newProgress(messages)}

	unlock, err := b.lock(ctx, filepath.Join(cache, "lock"))
	if err != nil {
		return Programs{}, err
	}
	defer unlock()
	programs := Programs{Folder: filepath.Join(cache, key)}
	if _, err := os.Stat(programs.Folder); err == nil {
		return programs, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Programs{}, err
	}
	if err := b.run(ctx); err != nil {
		return Programs{}, err
	}
	// Only a whole build gets the name by which it is found.
	if err := os.Rename(b.folder, programs.Folder); err != nil {
		return Programs{}, err
	}
	b.progress.say("built in %s", programs.Folder)
	return programs, nil
}

// Compile builds a package of this module into a static program, such as one for an image.
func Compile(ctx context.Context, packagePath, output string) error {
	source, err := sourceFolder(ctx)
	if err != nil {
		return err
	}
	b := &build{source: source, progress: newProgress(io.Discard)}
	return b.compile(ctx, packagePath, ".", "-o", output, packagePath)
}

type build struct {
	source   string // the folder of this module
	folder   string // where the programs go
	progress *progress
}

func (b *build) run(ctx context.Context) error {
	if err := os.MkdirAll(b.folder, 0o755); err != nil {
		return err
	}
	if err := b.kubernetes(ctx); err != nil {
		return err
	}
	if err := b.runtime(ctx); err != nil {
		return err
	}
	return b.pause(ctx)
}

func (b *build) kubernetes(ctx context.Context) error {
	version, err := b.moduleVersion(ctx, "kubernetes", "k8s.io/kubernetes")
	if err != nil {
		return err
	}
	major, minor, err := splitVersion(version)
	if err != nil {
		return err
	}
	const variables = "k8s.io/component-base/version."
	flags := strings.Join([]string{"-s -w",
		"-X", variables + "gitVersion=" + version,
		"-X", variables + "gitMajor=" + major,
		"-X", variables + "gitMinor=" + minor,
		"-X", variables + "gitTreeState=clean"}, " ")
	if err := b.compile(ctx, "Kubernetes "+version, "kubernetes", "-ldflags", flags, "-o", filepath.Join(b.folder, "kubernetes"), "."); err != nil {
		return err
	}
	for _, name := range components {
		if err := os.Symlink("kubernetes", filepath.Join(b.folder, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// runtime builds all tools of the module runtime.
func (b *build) runtime(ctx context.Context) error {
	version, err := b.moduleVersion(ctx, "runtime", "github.com/containerd/containerd/v2")
	if err != nil {
		return err
	}
	flags := "-s -w -X github.com/containerd/containerd/v2/version.Version=" + version
	// The snapshotters left out would need headers of C libraries or programs that no image here uses.
	return b.compile(ctx, "containerd "+version+" and CNI plugins", "runtime",
		"-tags", "no_btrfs no_devmapper no_zfs", "-ldflags", flags, "-o", b.folder+"/", "tool")
}

// pause builds the image that holds a pod's namespaces.
func (b *build) pause(ctx context.Context) error {
	root, err := os.MkdirTemp("", "pause-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if err := b.compile(ctx, "pause image", ".", "-o", filepath.Join(root, "pause"), modulePath+"/pause"); err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(b.folder, pauseFile))
	if err != nil {
		return err
	}
	_, err = image.Write(file, pauseImage, image.Config{Entrypoint: []string{"/pause"}}, os.DirFS(root))
	return errors.Join(err, file.Close())
}

// compile runs go build in a folder of this module. Without cgo: the programs are static, and no C compiler
// is needed.
func (b *build) compile(ctx context.Context, what, folder string, args ...string) error {
	b.progress.say("building %s", what)
	output := new(buildOutput)
	defer b.progress.during(func() string { return fmt.Sprintf("building %s: %s", what, output.status()) })()

	command := goCommand(ctx, filepath.Join(b.source, folder), append([]string{"build", "-v", "-buildvcs=false"}, args...)...)
	command.Stderr = output
	if err := command.Run(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", what, err, output.errors())
	}
	return nil
}

func (b *build) moduleVersion(ctx context.Context, folder, module string) (string, error) {
	return goOutput(ctx, filepath.Join(b.source, folder), "list", "-m", "-f", "{{.Version}}", module)
}

// buildKey names a build by everything that decides its result.
func buildKey(ctx context.Context, source string) (string, error) {
	compiler, err := goOutput(ctx, source, "env", "GOVERSION", "GOARCH")
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	io.WriteString(hash, compiler)
	for _, name := range sources {
		content, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(hash, "%s %d\n", name, len(content))
		hash.Write(content)
	}
	return fmt.Sprintf("%x", hash.Sum(nil)[:6]), nil
}

// splitVersion returns the major and minor number of a version such as v1.37.2.
func splitVersion(version string) (major, minor string, err error) {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) != 3 {
		return "", "", fmt.Errorf("version %q is not like v1.37.2", version)
	}
	return parts[0], parts[1], nil
}
