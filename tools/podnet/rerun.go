package podnet

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// insideVariable marks the environment of a process that Rerun started.
const insideVariable = "PODNET_INSIDE"

// Inside says whether this process was started by [Rerun].
func Inside() bool { return os.Getenv(insideVariable) != "" }

// Rerun runs this program once more, with the same arguments, environment and
// standard files, in new mount and network namespaces and in those that extra
// asks for (CLONE_NEW* flags); as an ordinary user also in a new user
// namespace, in which that user is root. It returns the exit code. An error
// means that the program did not start, and says what would help.
func Rerun(extra uintptr) (int, error) {
	program, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(program, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	Isolate(cmd, unix.CLONE_NEWNS|unix.CLONE_NEWNET|extra)
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	// The kernel ties Pdeathsig to the thread that starts the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, NamespacesRefused(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			cmd.Process.Signal(s) // it may have ended meanwhile
		case err := <-ended:
			return exitCode(err)
		}
	}
}

// Isolate has a command start in new namespaces (CLONE_NEW* flags); as an ordinary
// user also in a new user namespace, in which that user is root.
func Isolate(cmd *exec.Cmd, flags uintptr) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
}

func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// NamespacesRefused says what helps when the kernel refuses namespaces.
func NamespacesRefused(err error) error {
	if os.Geteuid() == 0 && !Inside() {
		return fmt.Errorf("namespaces are refused here (%w): root lacks CAP_SYS_ADMIN; "+
			"in a container, run it with '--privileged'", err)
	}
	return fmt.Errorf("namespaces are refused here (%w): %s", err, remedy("/proc/sys"))
}

// remedy looks for the setting that stands in an ordinary user's way, in the
// folder of the kernel's settings.
func remedy(settings string) string {
	for _, s := range []struct{ file, refusing, command string }{
		{"kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"},
		{"user/max_user_namespaces", "0", "user.max_user_namespaces=15000"},
		{"user/max_net_namespaces", "0", "user.max_net_namespaces=15000"},
		{"kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"},
	} {
		value, err := os.ReadFile(filepath.Join(settings, s.file))
		if err == nil && strings.TrimSpace(string(value)) == s.refusing {
			return "run 'sudo sysctl -w " + s.command + "', or run it as root"
		}
	}
	return "none of kernel.unprivileged_userns_clone, user.max_user_namespaces and " +
		"kernel.apparmor_restrict_unprivileged_userns stands in the way, so it is a container's seccomp profile " +
		"or a security module: run it as root, in a container with '--privileged'"
}
