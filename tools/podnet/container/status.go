package container

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Status is what the kernel says of a running container's first process.
type Status struct {
	// UID and GID are as the container sees them.
	UID, GID uint32
	// Groups are the supplementary groups, as the container sees them.
	Groups []uint32
	// Bounding and Effective are its capabilities.
	Bounding, Effective CapabilitySet
	// NoNewPrivileges: no program that it executes gains anything.
	NoNewPrivileges bool
}

// Status asks the kernel.
func (c *Container) Status() (Status, error) {
	ids := sameIDs
	if c.nested {
		var err error
		if ids, err = readIDMaps(strconv.Itoa(c.PID())); err != nil {
			return Status{}, err
		}
	}
	fields, err := statusFields(c.PID())
	if err != nil {
		return Status{}, err
	}
	s := Status{
		UID:             ids.users.inside(firstOf(fields["Uid"])),
		GID:             ids.groups.inside(firstOf(fields["Gid"])),
		Groups:          []uint32{},
		NoNewPrivileges: fields["NoNewPrivs"] == "1",
	}
	for _, group := range strings.Fields(fields["Groups"]) {
		s.Groups = append(s.Groups, ids.groups.inside(group))
	}
	if s.Bounding, err = parseMask(fields["CapBnd"]); err != nil {
		return Status{}, fmt.Errorf("bounding set: %w", err)
	}
	if s.Effective, err = parseMask(fields["CapEff"]); err != nil {
		return Status{}, fmt.Errorf("effective capabilities: %w", err)
	}
	return s, nil
}

// statusFields reads /proc/PID/status.
func statusFields(pid int) (map[string]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			fields[key] = strings.TrimSpace(value)
		}
	}
	return fields, nil
}

func parseMask(hexadecimal string) (CapabilitySet, error) {
	mask, err := strconv.ParseUint(hexadecimal, 16, 64)
	return CapabilitySet(mask), err
}

// firstOf is the real ID of those in a line.
func firstOf(ids string) string {
	one, _, _ := strings.Cut(ids, "\t")
	return one
}
