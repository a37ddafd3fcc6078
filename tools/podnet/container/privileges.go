package container

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// dropPrivileges leaves this thread what the container may have, for the
// program that it executes next.
func dropPrivileges(h handover) error {
	spec := h.Spec
	// Beyond the kernel's last capability prctl says EINVAL.
	for number := range 64 {
		if spec.Capabilities.Has(number) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(number), 0, 0, 0)
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("dropping capability %d: %w", number, err)
		}
	}
	if err := setUser(h); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clearing the ambient capabilities: %w", err)
	}
	var effective CapabilitySet
	if spec.UID == 0 {
		effective = spec.Capabilities
	}
	if err := setCapabilities(effective); err != nil {
		return err
	}
	if spec.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("no new privileges: %w", err)
		}
	}
	// Last, since the kernel forgets it when the user changes.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("ending with its parent: %w", err)
	}
	return nil
}

// setUser sets the groups and the user. In a user namespace of one user both
// are right from the start, and the groups cannot be changed.
func setUser(h handover) error {
	spec := h.Spec
	if h.SetGroups {
		groups := make([]int, len(spec.Groups))
		for i, group := range spec.Groups {
			groups[i] = int(group)
		}
		if err := syscall.Setgroups(groups); err != nil {
			return fmt.Errorf("supplementary groups %v: %w", groups, err)
		}
	}
	if err := syscall.Setgid(int(spec.GID)); err != nil {
		return fmt.Errorf("group %d: %w", spec.GID, err)
	}
	if err := syscall.Setuid(int(spec.UID)); err != nil {
		return fmt.Errorf("user %d: %w", spec.UID, err)
	}
	return nil
}

// setCapabilities sets the permitted and the effective set of this thread, and
// clears the inheritable one.
func setCapabilities(set CapabilitySet) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(set), Permitted: uint32(set)},
		{Effective: uint32(set >> 32), Permitted: uint32(set >> 32)},
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("capabilities %s: %w", set, err)
	}
	return nil
}
