package main

import (
	"os"
	"syscall"
)

// forbidCoreDumps keeps the tokens in this process's memory out of core files.
// The resource limit stops the ordinary ones; a core_pattern that pipes to a
// program ignores the limit but not the dumpable flag, which also keeps other
// processes of the same user from reading the memory by ptrace(2).
func forbidCoreDumps() error {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return os.NewSyscallError("setrlimit RLIMIT_CORE", err)
	}
	const notDumpable = 0
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, notDumpable, 0); errno != 0 {
		return os.NewSyscallError("prctl PR_SET_DUMPABLE", errno)
	}
	return nil
}
