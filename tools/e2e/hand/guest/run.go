package main

import (
	"context"
	"os/exec"
	"syscall"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/hand"
)

// commandLimit is how long a shell command may take that says nothing else.
const commandLimit = 30 * time.Second

// runCommand runs a shell command and kills it, and what it started, at its limit.
func runCommand(ctx context.Context, r hand.Run) (hand.Ran, error) {
	limit := r.Limit
	if limit == 0 {
		limit = commandLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	command := exec.CommandContext(ctx, "/bin/sh", "-c", r.Command)
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	// What goes on in the background keeps the output open.
	command.WaitDelay = 100 * time.Millisecond
	output, err := command.CombinedOutput()
	if command.ProcessState == nil {
		return hand.Ran{}, err
	}
	exit := command.ProcessState.ExitCode()
	if status, ok := command.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() && ctx.Err() == nil {
		exit = 128 + int(status.Signal()) // as the shell has it
	}
	return hand.Ran{Exit: exit, Output: string(output)}, nil
}
