package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// buildPrograms writes the files of the commit into the tree, whatever else is in the repository's folder, and has
// just build them to bin/ there.
func (r *release) buildPrograms(ctx context.Context) error {
	if _, err := exec.LookPath("just"); err != nil {
		return fmt.Errorf("just is not on the PATH, and it builds the programs: run npx --yes rust-just release %s, which has it there", r.version)
	}
	environment, err := r.environment(ctx)
	if err != nil {
		return err
	}
	objects, err := r.git(ctx, "rev-parse", "--path-format=absolute", "--git-path", "objects")
	if err != nil {
		return err
	}
	// A repository of its own, for which no setting and no attribute of the user's or of the other one holds.
	environment = append(environment, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_ALTERNATE_OBJECT_DIRECTORIES="+objects)
	commands := [][]string{
		{"git", "init", "--quiet", "--template="},
		{"git", "checkout", "--quiet", "--detach", r.commit},
	}
	for _, architecture := range architectures {
		commands = append(commands, []string{"just", "build", architecture, r.version})
	}
	for _, command := range commands {
		if _, err := output(ctx, environment, r.tree, command[0], command[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// environment is the part of this process's in which nothing changes what is built.
func (r *release) environment(ctx context.Context) ([]string, error) {
	environment := []string{"GOENV=off", "GOTOOLCHAIN=local", "GOWORK=off"}
	for _, name := range []string{
		"PATH", "HOME", "USER", "TMPDIR", "XDG_RUNTIME_DIR",
		"_CONTAINERS_USERNS_CONFIGURED", "_CONTAINERS_ROOTLESS_UID", "_CONTAINERS_ROOTLESS_GID", // in buildah unshare
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
	} {
		if value, ok := os.LookupEnv(name); ok {
			environment = append(environment, name+"="+value)
		}
	}
	// Wherever the modules come from, go.sum has their hashes.
	names := []string{"GOPROXY", "GONOPROXY", "GOPRIVATE", "GOINSECURE", "GOAUTH", "GOVCS", "GOSUMDB", "GONOSUMDB", "GOMODCACHE", "GOCACHE"}
	values, err := output(ctx, nil, r.root, "go", append([]string{"env"}, names...)...)
	if err != nil {
		return nil, err
	}
	for i, value := range strings.Split(values, "\n") {
		environment = append(environment, fmt.Sprintf("%s=%s", names[i], value))
	}
	return environment, nil
}
