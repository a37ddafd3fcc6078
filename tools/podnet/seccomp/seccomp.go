// Package seccomp puts a process under a profile as container runtimes read them, so
// that tests see what it does not allow.
package seccomp

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// profile is the part of an OCI runtime's LinuxSeccomp that our profiles have.
type profile struct {
	Syscalls []struct {
		Names []string
		Args  []struct {
			Index           uint
			Value, ValueTwo uint64
			Op              string
		}
	}
}

// Filter returns the program for the kernel that allows what a profile allows, and raises
// SIGSYS for all else, with the place in Go's trace.
func Filter(path string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var p profile
	if err := json.Unmarshal(content, &p); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	numbers, err := numbers()
	if err != nil {
		return nil, err
	}
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		and    = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
		result = unix.BPF_RET | unix.BPF_K
	)
	arch := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	// struct seccomp_data: the number at 0, the architecture at 4, the arguments from 16.
	program := []unix.SockFilter{{Code: load, K: 4}, {Code: equal, K: arch, Jt: 1}, {Code: result, K: unix.SECCOMP_RET_KILL_PROCESS}}
	for _, syscall := range p.Syscalls {
		for _, name := range syscall.Names {
			number, found := numbers[name]
			if !found {
				continue // of another architecture
			}
			var test []unix.SockFilter
			for _, arg := range syscall.Args {
				if arg.Value > 1<<32-1 {
					return nil, fmt.Errorf("%s: %s: values are of 32 bits here", path, name)
				}
				test = append(test, unix.SockFilter{Code: load, K: uint32(16 + 8*arg.Index)}) // the low half
				value := uint32(arg.Value)
				if arg.Op == "SCMP_CMP_MASKED_EQ" {
					test = append(test, unix.SockFilter{Code: and, K: value})
					value = uint32(arg.ValueTwo)
				} else if arg.Op != "SCMP_CMP_EQ" {
					return nil, fmt.Errorf("%s: %s: operator %s is not known", path, name, arg.Op)
				}
				test = append(test, unix.SockFilter{Code: equal, K: value, Jf: 1})
			}
			if len(syscall.Args) > 1 {
				return nil, fmt.Errorf("%s: %s: more than one argument is not known", path, name)
			}
			test = append(test, unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ALLOW})
			program = append(program, unix.SockFilter{Code: load, K: 0}, unix.SockFilter{Code: equal, K: number, Jf: uint8(len(test))})
			program = append(program, test...)
		}
	}
	program = append(program, unix.SockFilter{Code: result, K: unix.SECCOMP_RET_TRAP})
	var filter []byte
	for _, one := range program {
		filter = binary.NativeEndian.AppendUint16(filter, one.Code)
		filter = append(filter, one.Jt, one.Jf)
		filter = binary.NativeEndian.AppendUint32(filter, one.K)
	}
	return filter, nil
}

// numbers are those of the system calls of this architecture.
func numbers() (map[string]uint32, error) {
	folder, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		return nil, fmt.Errorf("go list -m golang.org/x/sys: %w", err)
	}
	source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(folder)), "unix", "zsysnum_linux_"+runtime.GOARCH+".go"))
	if err != nil {
		return nil, err
	}
	all := map[string]uint32{}
	for _, found := range regexp.MustCompile(`SYS_(\w+)\s+= (\d+)`).FindAllSubmatch(source, -1) {
		number, _ := strconv.ParseUint(string(found[2]), 10, 32)
		all[strings.ToLower(string(found[1]))] = uint32(number)
	}
	if number, found := all["fstatat"]; found { // as it is called where it has no other name
		all["newfstatat"] = number
	}
	return all, nil
}

// By these a test tells its children which program they are to become, under which filter.
const (
	filterVariable  = "IMDS_TEST_SECCOMP_FILTER"
	programVariable = "IMDS_TEST_SECCOMP_PROGRAM"
)

// Run runs tests of the calling test binary again, and has its children that call
// BecomeFiltered be the program of a folder of the repository, as it is in the image,
// under a profile.
func Run(t *testing.T, folder, profile, tests string) {
	t.Helper()
	filter, err := Filter(profile)
	if err != nil {
		t.Fatal(err)
	}
	place, err := os.MkdirTemp("", "seccomp") // another user executes it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(place) })
	if err := os.Chmod(place, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(place, "program")
	build := exec.Command("go", "build", "-o", program, folder)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	again := exec.Command("/proc/self/exe", "-test.v", "-test.timeout=2m", "-test.run="+tests)
	again.WaitDelay = time.Second // a child that is left holds its output
	again.Env = append(os.Environ(), filterVariable+"="+hex.EncodeToString(filter), programVariable+"="+program)
	said, err := again.CombinedOutput()
	if err != nil || !strings.Contains(string(said), "--- PASS") {
		t.Errorf("%v\n%s", err, said)
	}
}

// Inherited is what a child needs whose environment is made anew.
func Inherited() (env []string) {
	for _, name := range []string{filterVariable, programVariable} {
		if value := os.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// BecomeFiltered becomes the program under the filter, where there is one.
func BecomeFiltered() {
	if os.Getenv(filterVariable) == "" {
		return
	}
	filter, err := hex.DecodeString(os.Getenv(filterVariable))
	if err == nil {
		err = execute(filter, append([]string{os.Getenv(programVariable)}, os.Args[1:]...))
	}
	panic(err)
}

// execute becomes another program under a filter.
func execute(filter []byte, argv []string) error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(filter) / unix.SizeofSockFilter), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))}
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return errno
	}
	return unix.Exec(argv[0], argv, os.Environ())
}
