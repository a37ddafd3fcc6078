package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	cacheName  = "kubevirt-imds-e2e"
	pauseImage = "localhost/pause:1"
	pauseRoot  = "pause-image" // the folder with its files
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
	"pause/main.go", "cluster/build.go",
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

	unlock, err := LockCache(ctx, "lock", b.progress.say)
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

// pause builds what is in the image that holds a pod's namespaces.
func (b *build) pause(ctx context.Context) error {
	return b.compile(ctx, "pause image", ".", "-o", filepath.Join(b.folder, pauseRoot, "pause"), modulePath+"/pause")
}

// compile runs go build in a folder of this module. Without cgo: the programs are static, and no C compiler
// is needed.
func (b *build) compile(ctx context.Context, what, folder string, args ...string) error {
	b.progress.say("building %s", what)
	defer b.progress.during("still building " + what)()
	return RunGo(ctx, filepath.Join(b.source, folder), append([]string{"build", "-buildvcs=false"}, args...)...)
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

// CacheFolder makes, in the user's cache folder, the one for what is made once, and returns it.
func CacheFolder() (string, error) {
	caches, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	folder := filepath.Join(caches, cacheName)
	return folder, os.MkdirAll(folder, 0o755)
}

// LockCache has one process at a time make something in the cache folder, by a file there. It tells if it has to wait.
func LockCache(ctx context.Context, name string, tell func(format string, args ...any)) (unlock func(), err error) {
	cache, err := CacheFolder()
	if err != nil {
		return nil, err
	}
	return lock(ctx, filepath.Join(cache, name), tell)
}

func lock(ctx context.Context, path string, tell func(format string, args ...any)) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		tell("another process is making the same; waiting for it")
		taken := make(chan error, 1)
		go func() { taken <- unix.Flock(int(file.Fd()), unix.LOCK_EX) }()
		select {
		case err = <-taken:
		case <-ctx.Done():
			go func() {
				<-taken
				file.Close()
			}()
			return nil, context.Cause(ctx)
		}
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { file.Close() }, nil
}

const modulePath = "github.com/example/kubevirt-imds/tools/e2e"

// sourceFolder finds this module's folder from wherever the go command finds the module.
func sourceFolder(ctx context.Context) (string, error) {
	folder, err := goOutput(ctx, "", "list", "-m", "-f", "{{.Dir}}", modulePath)
	if err != nil {
		return "", fmt.Errorf("the source of this program is needed (run it in its module's folder, tools/e2e): %w", err)
	}
	return folder, nil
}

// goCommand is a call of the go command that depends on the module in its folder alone.
func goCommand(ctx context.Context, folder string, args ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir = folder
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	// An interrupted build ends its compilers too: they are its process group.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGTERM) }
	return command
}

func goOutput(ctx context.Context, folder string, args ...string) (string, error) {
	var errorText bytes.Buffer
	command := goCommand(ctx, folder, args...)
	command.Stderr = &errorText
	output, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errorText.String()))
	}
	return strings.TrimSpace(string(output)), nil
}

// Repository is the folder of the module whose tests this module is: the one two folders up.
func Repository(ctx context.Context) (string, error) {
	source, err := sourceFolder(ctx)
	if err != nil {
		return "", err
	}
	return filepath.Join(source, "../.."), nil
}

// RunGo calls the go command in a folder, as Compile does, and returns what it said when it fails.
func RunGo(ctx context.Context, folder string, args ...string) error {
	if output, err := goCommand(ctx, folder, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, output)
	}
	return nil
}
