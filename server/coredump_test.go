package main

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// In a process of its own, since a process cannot take it back.
func TestForbidCoreDumps(t *testing.T) {
	const inChild = "IMDS_TEST_FORBID_CORE_DUMPS"
	if os.Getenv(inChild) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestForbidCoreDumps$")
		cmd.Env = append(os.Environ(), inChild+"=1", "GORACE=atexit_sleep_ms=0")
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		return
	}
	dumpable := func() uintptr {
		value, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_GET_DUMPABLE, 0, 0)
		if errno != 0 {
			t.Fatal(errno)
		}
		return value
	}
	if dumpable() == 0 {
		t.Fatal("the process is not dumpable from the start, so this test tells nothing")
	}
	if err := forbidCoreDumps(); err != nil {
		t.Fatal(err)
	}
	if value := dumpable(); value != 0 {
		t.Errorf("the process has the dumpable flag %d, want 0", value)
	}
	limit := syscall.Rlimit{Cur: 1, Max: 1}
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &limit); err != nil || limit != (syscall.Rlimit{}) {
		t.Errorf("got the limit %+v (error %v), want 0", limit, err)
	}
}
