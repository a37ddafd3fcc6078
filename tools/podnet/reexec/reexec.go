// Package reexec starts this program again in another role, such as the first
// process of a container: what has to be done in new namespaces before any
// other thread runs there.
//
// A role takes over in an init function, before main, and not in a function for
// each main and TestMain to call: forgetting that call would run the whole
// program again in place of the role, which would start the next, and so on.
package reexec

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
)

// As belongs in an init function: where [Command] has started this program in
// the role of that name, it calls role and ends the program. The name (argv[0])
// also says in ps what is what.
func As[T any](name string, role func(T) error) {
	if os.Args[0] != name {
		return
	}
	var settings T
	err := json.Unmarshal([]byte(os.Args[1]), &settings)
	if err == nil {
		err = role(settings)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Command is the command that starts this program in a role with its settings.
func Command(ctx context.Context, name string, settings any) *exec.Cmd {
	packed, err := json.Marshal(settings)
	if err != nil {
		panic(err) // settings are structures of strings and numbers
	}
	command := exec.CommandContext(ctx, "/proc/self/exe")
	command.Args = []string{name, string(packed)}
	return command
}
