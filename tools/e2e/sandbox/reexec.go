package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
)

// The names (argv[0]) under which this program is started again. They also say in `ps` what is what.
const (
	roleKeeper = "kubevirt-imds-e2e-keeper"
	roleInit   = "kubevirt-imds-e2e-init"
	roleEnter  = "kubevirt-imds-e2e-enter"
)

// Any program that imports this package can be started again in one of the roles. That is settled here,
// before its main, and not in a function for each main and TestMain to call: forgetting that call would run
// the whole program again in place of the helper, which would start the next, and so on.
func init() {
	var role func() error
	switch os.Args[0] {
	case roleKeeper:
		role = func() error { return with(keep) }
	case roleInit:
		role = func() error { return with(initialize) }
	case roleEnter:
		role = func() error { return with(enter) }
	default:
		return
	}
	if err := role(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		os.Exit(1)
	}
	os.Exit(0)
}

// with calls a role with the settings that again packed.
func with[T any](role func(T) error) error {
	var settings T
	if err := json.Unmarshal([]byte(os.Args[1]), &settings); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	return role(settings)
}

// again is the command that starts this program in a role.
func again(ctx context.Context, role string, settings any) *exec.Cmd {
	packed, err := json.Marshal(settings)
	if err != nil {
		panic(err) // settings are structures of strings and numbers
	}
	command := exec.CommandContext(ctx, "/proc/self/exe")
	command.Args = []string{role, string(packed)}
	return command
}
