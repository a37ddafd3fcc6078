package stage

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// thisKernel leaves the thread's view of the kernel as it is.
func thisKernel() error { return nil }

// withoutNetfilter has the kernel answer the thread, and all that it starts, as one that was built without nfnetlink:
// there is no such protocol.
func withoutNetfilter() error {
	const (
		systemCall = 0            // offset in struct seccomp_data of include/uapi/linux/seccomp.h
		family     = 16           // its first argument's low half, on a little-endian machine
		protocol   = family + 2*8 // its third's
		load       = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal      = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		verdict    = unix.BPF_RET | unix.BPF_K
		refuse     = unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)
	)
	filter := []unix.SockFilter{
		{Code: load, K: systemCall}, {Code: equal, K: unix.SYS_SOCKET, Jf: 5},
		{Code: load, K: family}, {Code: equal, K: unix.AF_NETLINK, Jf: 3},
		{Code: load, K: protocol}, {Code: equal, K: unix.NETLINK_NETFILTER, Jf: 1},
		{Code: verdict, K: refuse},
		{Code: verdict, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
	if err != nil {
		return fmt.Errorf("filter of system calls: %w", err)
	}
	return nil
}
