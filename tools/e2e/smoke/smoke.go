// Package smoke checks that a cluster is a real one: that its kubelet, its container runtime and its API
// server do what the sidecars of KubeVirt IMDS depend on.
package smoke

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/image"
)

//go:embed pod.yaml
var manifest string

// checks are the facts that the containers of the pod must report.
var checks = []struct {
	container, fact, want string
	proves                string
}{
	{"network", "uid", "0", "a container of uid 0 starts"},
	{"network", "CapEff", "0000000000001000", "it has NET_ADMIN and no other capability"},
	{"network", "Seccomp", "2", "seccomp profile RuntimeDefault is in force"},
	{"network", "NoNewPrivs", "1", "privilege escalation is off"},
	{"server", "uid", "65532", "a container of another uid starts beside it"},
	{"server", "CapEff", "0000000000000000", "it has no capability"},
	{"server", "CapBnd", "0000000000000000", "and can get none"},
	{"server", "Seccomp", "2", "seccomp profile RuntimeDefault is in force there too"},
	{"server", "token mode", "-rw-r-----", "the projected token is not for everybody"},
	{"server", "token owner", "0:107", "it belongs to the pod's fsGroup"},
	{"server", "token readable", "true", "which every container has"},
	{"compute", "sidecar", "hello from the sidecar", "native sidecars are up first; the pod's sysctl gives port 80 to uid 65532"},
	{"compute", "authenticated", "true", "a TokenReview, sent through the Service of the API, accepts the token"},
	{"compute", "user", "system:serviceaccount:smoke:guest", "as the ServiceAccount's"},
	{"compute", "audiences", "smoke", "for the audience of the volume"},
}

// Run runs the pod and writes what that proved, a line for each check. It fails if one of them does.
func Run(ctx context.Context, c *cluster.Cluster, out io.Writer) error {
	if err := loadImage(ctx, c); err != nil {
		return err
	}
	if _, err := kubectl(ctx, c, manifest, "apply", "-f", "-"); err != nil {
		return err
	}
	if _, err := kubectl(ctx, c, "", "wait", "--namespace=smoke", "pod/smoke",
		"--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s"); err != nil {
		state, stateErr := kubectl(ctx, c, "", "describe", "--namespace=smoke", "pod/smoke")
		return errors.Join(err, stateErr, errors.New(state))
	}

	reports := map[string]map[string]string{}
	var failed []error
	for _, check := range checks {
		if reports[check.container] == nil {
			log, err := kubectl(ctx, c, "", "logs", "--namespace=smoke", "smoke", "--container="+check.container)
			if err != nil {
				return err
			}
			reports[check.container] = parseFacts(log)
		}
		got := reports[check.container][check.fact]
		verdict := "ok  "
		if got != check.want {
			verdict = "FAIL"
			failed = append(failed, fmt.Errorf("container %s: %s is %q, want %q", check.container, check.fact, got, check.want))
		}
		fmt.Fprintf(out, "%s %-8s %s\n", verdict, check.container, check.proves)
	}
	return errors.Join(failed...)
}

// loadImage builds the image of the pod's containers and gives it to the node.
func loadImage(ctx context.Context, c *cluster.Cluster) error {
	folder, err := os.MkdirTemp("", "smoke-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	root := filepath.Join(folder, "root")
	const program = "github.com/example/kubevirt-imds/tools/e2e/smoke/container"
	if err := cluster.Compile(ctx, program, filepath.Join(root, "container")); err != nil {
		return err
	}
	archive := filepath.Join(folder, "image.tar")
	file, err := os.Create(archive)
	if err != nil {
		return err
	}
	_, err = image.Write(file, "localhost/smoke:1", image.Config{Entrypoint: []string{"/container"}}, os.DirFS(root))
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	return c.LoadImage(ctx, archive)
}

// kubectl runs kubectl in the cluster and returns what it wrote to its standard output.
func kubectl(ctx context.Context, c *cluster.Cluster, input string, args ...string) (string, error) {
	var output, complaint strings.Builder
	command := c.Command(ctx, "kubectl", args...)
	command.Stdin = strings.NewReader(input)
	command.Stdout, command.Stderr = &output, &complaint
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return output.String(), nil
}

// parseFacts reads lines of the form name=value.
func parseFacts(report string) map[string]string {
	facts := map[string]string{}
	for line := range strings.Lines(report) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), "="); found {
			facts[name] = value
		}
	}
	return facts
}
