package container

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// refuseNetfilter makes socket(AF_NETLINK, _, NETLINK_NETFILTER) fail as on a
// kernel without nfnetlink (EPROTONOSUPPORT), for this thread and all that it
// executes.
func refuseNetfilter() error {
	const (
		systemCall = 0  // offsets in struct seccomp_data of include/uapi/linux/seccomp.h
		firstArg   = 16 // low half of the first argument on a little-endian machine
		thirdArg   = 16 + 16
		load       = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		isEqual    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		verdict    = unix.BPF_RET | unix.BPF_K
	)
	filter := []unix.SockFilter{
		{Code: load, K: systemCall},
		{Code: isEqual, K: unix.SYS_SOCKET, Jf: 5},
		{Code: load, K: firstArg},
		{Code: isEqual, K: unix.AF_NETLINK, Jf: 3},
		{Code: load, K: thirdArg},
		{Code: isEqual, K: unix.NETLINK_NETFILTER, Jf: 1},
		{Code: verdict, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)},
		{Code: verdict, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}
