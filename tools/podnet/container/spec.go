// Package container starts a process the way a container runtime does for a
// pod: with its own mount, PID, IPC and UTS namespaces, a root file system that
// holds its image and its volumes only, one user, and no more capabilities than
// it was given. What it leaves out: the runtime's seccomp profile, /sys, and the
// files of /etc that the kubelet writes.
package container

import "fmt"

// Spec is a container as the runtime gets it.
type Spec struct {
	// Name is for error messages, and the container's host name.
	Name string
	// Image is a folder; each file in it becomes one in the container's root.
	Image string
	// Scratch is an empty folder of the container's own, on which its root is
	// put together.
	Scratch string
	// Mounts are the container's volumes.
	Mounts []Mount
	// ReadOnlyRoot makes everything but the volumes read-only.
	ReadOnlyRoot bool
	// Command is the program, a path inside the container, and its arguments.
	Command []string
	// Env is the whole environment, as in os.Environ.
	Env []string
	// UID and GID are the user. Groups are supplementary ones, the pod's
	// fsGroup among them.
	UID, GID uint32
	Groups   []uint32
	// Capabilities is the bounding set. A user other than 0 has none of them
	// in effect, as with every runtime.
	Capabilities CapabilitySet
	// NoNewPrivileges is the opposite of allowPrivilegeEscalation.
	NoNewPrivileges bool
	// Cgroups are the folders of the cgroups that it is in.
	Cgroups []string
	// WithoutNetfilter: the kernel answers it as one that was built without
	// nfnetlink. Only with NoNewPrivileges.
	WithoutNetfilter bool
}

// Mount is a volume in a container.
type Mount struct {
	// Source is a folder outside, Target an absolute path inside.
	Source, Target string
	ReadOnly       bool
}

func (s Spec) check() error {
	switch {
	case len(s.Command) == 0:
		return fmt.Errorf("container %s: no command: an image FROM scratch has none of its own", s.Name)
	case s.Image == "" || s.Scratch == "":
		return fmt.Errorf("container %s: no image or no scratch folder", s.Name)
	}
	return nil
}

// handover is what the container's first process gets to know.
type handover struct {
	Spec Spec
	// SetGroups: this user namespace lets the supplementary groups be set.
	SetGroups bool
}
