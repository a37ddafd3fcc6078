package container

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet/reexec"
)

// firstProcess is this program as a container's first process.
const firstProcess = "podnet-container"

// failureFile is inherited by the first process: it writes what goes wrong there.
// The file is closed when the command is executed.
const failureFile = 3

func init() {
	reexec.As(firstProcess, func(h handover) error {
		runtime.LockOSThread() // capabilities belong to a thread
		unix.CloseOnExec(failureFile)
		fmt.Fprint(os.NewFile(failureFile, "failure"), become(h))
		os.Exit(1)
		return nil
	})
}

// become returns only when it has failed.
func become(h handover) error {
	spec := h.Spec
	for _, group := range spec.Cgroups {
		// 0 is the process that writes.
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := buildRoot(spec); err != nil {
		return err
	}
	if err := dropPrivileges(h); err != nil {
		return err
	}
	if spec.WithoutNetfilter {
		if err := refuseNetfilter(); err != nil {
			return fmt.Errorf("filter of system calls: %w", err)
		}
	}
	if err := syscall.Exec(spec.Command[0], spec.Command, spec.Env); err != nil {
		return fmt.Errorf("executing %s: %w", spec.Command[0], err)
	}
	return nil
}
