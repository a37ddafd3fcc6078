package container

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// initVariable in the environment makes this program a container's first
// process.
const initVariable = "IMDS_DEMO_CONTAINER"

// The first process inherits these: it reads its Spec from one, and writes what
// goes wrong to the other, which is closed when its command is executed.
const (
	specFile  = 3
	errorFile = 4
)

// Init is the first call of main: where Start has started this process to
// become a container, it becomes one and does not return.
func Init() {
	if os.Getenv(initVariable) == "" {
		return
	}
	runtime.LockOSThread() // capabilities belong to a thread
	fmt.Fprint(os.NewFile(errorFile, "errors"), become())
	os.Exit(1)
}

// become returns only when it has failed.
func become() error {
	unix.CloseOnExec(specFile)
	unix.CloseOnExec(errorFile)
	var h handover
	if err := json.NewDecoder(os.NewFile(specFile, "spec")).Decode(&h); err != nil {
		return fmt.Errorf("its spec: %w", err)
	}
	spec := h.Spec
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := buildRoot(spec); err != nil {
		return err
	}
	if err := dropPrivileges(h); err != nil {
		return err
	}
	if err := syscall.Exec(spec.Command[0], spec.Command, spec.Env); err != nil {
		return fmt.Errorf("executing %s: %w", spec.Command[0], err)
	}
	return nil
}
