package container

import (
	"fmt"
	"slices"
	"strings"
)

// CapabilitySet is a set of Linux capabilities as a bit mask, as in
// /proc/PID/status.
type CapabilitySet uint64

// capabilityNames are in the order of their numbers, linux/capability.h.
var capabilityNames = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER
	FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
	NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
	SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE
	SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP
	MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON
	BPF CHECKPOINT_RESTORE`)

// RuntimeDefault is what containerd and CRI-O give to a container whose pod
// says nothing.
var RuntimeDefault = mustParse("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL",
	"SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "SETFCAP")

// ParseCapabilities reads names as a pod's securityContext has them, without
// CAP_. ALL stands for every one.
func ParseCapabilities(names ...string) (CapabilitySet, error) {
	var set CapabilitySet
	for _, name := range names {
		if name == "ALL" {
			set = 1<<len(capabilityNames) - 1
			continue
		}
		number := slices.Index(capabilityNames, name)
		if number < 0 {
			return 0, fmt.Errorf("capability %q is unknown: write it as in NET_ADMIN", name)
		}
		set |= 1 << number
	}
	return set, nil
}

func mustParse(names ...string) CapabilitySet {
	set, err := ParseCapabilities(names...)
	if err != nil {
		panic(err)
	}
	return set
}

// Has says whether the set holds a capability, by its number.
func (s CapabilitySet) Has(number int) bool { return s&(1<<number) != 0 }

// String lists the names, or says none.
func (s CapabilitySet) String() string {
	var names []string
	for number, name := range capabilityNames {
		if s.Has(number) {
			names = append(names, name)
		}
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, " ")
}
