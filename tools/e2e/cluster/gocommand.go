package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

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
