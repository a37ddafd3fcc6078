package container

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
)

// overflowID is shown in place of a user or group that has no number in a user
// namespace.
const overflowID = 65534

// idMaps are the user and group IDs that a process's user namespace has.
type idMaps struct{ users, groups idMap }

// sameIDs are those of a process in our own user namespace, as we see them. Its
// uid_map would say how those outside see them.
var sameIDs = idMaps{idMap{{0, 0, math.MaxUint32}}, idMap{{0, 0, math.MaxUint32}}}

func readIDMaps(pid string) (idMaps, error) {
	users, err := readIDMap("/proc/" + pid + "/uid_map")
	if err != nil {
		return idMaps{}, err
	}
	groups, err := readIDMap("/proc/" + pid + "/gid_map")
	return idMaps{users, groups}, err
}

// groupsCanBeSet says whether our user namespace lets supplementary groups be
// set: that of an ordinary user never does.
func groupsCanBeSet() (bool, error) {
	text, err := os.ReadFile("/proc/self/setgroups")
	return strings.TrimSpace(string(text)) == "allow", err
}

// have says whether a container's user and all of its groups have a number.
func (m idMaps) have(spec Spec) bool {
	for _, group := range append([]uint32{spec.GID}, spec.Groups...) {
		if !m.groups.has(group) {
			return false
		}
	}
	return m.users.has(spec.UID)
}

// idMap is the content of /proc/PID/uid_map or gid_map.
type idMap []idRange

// idRange maps length IDs from inside on to those from outside on, which are as
// the reader's user namespace has them.
type idRange struct{ inside, outside, length uint64 }

func readIDMap(path string) (idMap, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var m idMap
	for line := range strings.Lines(string(text)) {
		var r idRange
		if _, err := fmt.Sscan(line, &r.inside, &r.outside, &r.length); err != nil {
			return nil, fmt.Errorf("%s: line %q: %w", path, line, err)
		}
		m = append(m, r)
	}
	return m, nil
}

func (m idMap) has(id uint32) bool {
	for _, r := range m {
		if n := uint64(id); r.inside <= n && n-r.inside < r.length {
			return true
		}
	}
	return false
}

// inside translates an ID that our /proc shows.
func (m idMap) inside(shown string) uint32 {
	n, err := strconv.ParseUint(shown, 10, 32)
	if err != nil || n == math.MaxUint32 {
		return overflowID
	}
	for _, r := range m {
		if r.outside <= n && n-r.outside < r.length {
			return uint32(r.inside + n - r.outside)
		}
	}
	return overflowID
}
