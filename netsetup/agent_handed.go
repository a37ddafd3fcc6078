package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMessage bounds a pod's message, in bytes. An honest one has no more than 1000.
const maxMessage = 4 << 10

// messageVersion is the newest form of the message that this agent understands. It
// understands all earlier ones too: fields are added, and never change. So an agent that
// is upgraded goes on with the pods that are there.
const messageVersion = 1

// handed is what a pod hands over: its network namespace, how it is to be wired, and
// who it says it is.
type handed struct {
	network     int   // a descriptor, not checked yet; -1: closed
	descriptors []int // all that came
	target      target

	Version         int    `json:"version"`
	BridgeName      string `json:"bridgeName"`
	PreferredBridge string `json:"preferredBridge"`
	Network         string `json:"network"`
	RedirectPort    int    `json:"redirectPort"`
	Namespace       string `json:"namespace"`
	Pod             string `json:"pod"`
	VM              string `json:"vm"`
}

// close may block where the descriptor is of a file system of the pod's own.
func (h *handed) close() {
	for _, fd := range h.descriptors {
		unix.Close(fd)
	}
	h.network, h.descriptors = -1, nil
}

// maxDescriptors is SCM_MAX_FD of the kernel: it closes what has no room, which may hang.
const maxDescriptors = 253

// receive reads the one message of a pod. Its descriptors are the caller's to close.
func receive(conn *net.UnixConn) (h handed, err error) {
	h.network = -1
	text, control := make([]byte, maxMessage+1), make([]byte, unix.CmsgSpace(4*maxDescriptors))
	n, controlled, flags, _, err := conn.ReadMsgUnix(text, control)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return h, fmt.Errorf("imds-server said nothing within %s", speakWithin)
	}
	if err != nil {
		return h, errors.New("imds-server ended the connection before it said anything")
	}
	h.descriptors = descriptorsIn(control[:controlled])
	switch {
	case len(h.descriptors) != 1 || flags&unix.MSG_CTRUNC != 0:
		err = errors.New("the pod's message has no file descriptor, or more than one")
	case n > maxMessage:
		err = fmt.Errorf("the pod's message is longer than %d bytes", maxMessage)
	}
	if err != nil {
		return h, err
	}
	if err = json.Unmarshal(bytes.TrimSpace(text[:n]), &h); err != nil {
		return h, errors.New("the pod's message is not the JSON of imds-server")
	}
	if h.target, err = h.check(); err != nil {
		return h, err
	}
	h.network = h.descriptors[0]
	return h, nil
}

// descriptorsIn returns the descriptors that came with a message.
func descriptorsIn(control []byte) (all []int) {
	messages, _ := unix.ParseSocketControlMessage(control) // the kernel's, which are right
	for _, m := range messages {
		rights, _ := unix.ParseUnixRights(&m)
		all = append(all, rights...)
	}
	return all
}

// check judges what was said as imds-init judges its environment.
func (h handed) check() (target, error) {
	if h.Version < 1 || h.Version > messageVersion {
		return target{}, fmt.Errorf("the pod's message has the version %d, and this agent understands up to %d: upgrade the agent first", h.Version, messageVersion)
	}
	for _, name := range []string{h.Namespace, h.Pod, h.VM} {
		if !isObjectName(name) {
			return target{}, fmt.Errorf("%.100q is not a name of a Kubernetes object", name)
		}
	}
	for _, name := range []string{h.BridgeName, h.PreferredBridge} {
		if err := validInterfaceName(name); err != nil {
			return target{}, fmt.Errorf("the bridge %.100q %w", name, err)
		}
	}
	redirectPort := ""
	if h.RedirectPort != 0 {
		redirectPort = strconv.Itoa(h.RedirectPort)
	}
	port, err := parsePort(redirectPort)
	if err != nil {
		return target{}, fmt.Errorf("the redirect port %s %w", redirectPort, err)
	}
	return target{
		bridgeName: h.BridgeName, preferredBridge: h.PreferredBridge,
		exclusive: h.BridgeName != "" || h.Network != "", redirectPort: port,
	}, nil
}

// isObjectName allows what a name in Kubernetes consists of, and the empty one. It is
// for the log alone.
func isObjectName(name string) bool {
	const longest = 253
	return len(name) <= longest && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") == ""
}

// namespaceID tells one namespace from another.
type namespaceID struct{ device, inode uint64 }

func namespaceAt(path string) (namespaceID, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return namespaceID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return namespaceID{uint64(stat.Dev), stat.Ino}, nil
}

// errNoNetwork refuses a descriptor.
var errNoNetwork = errors.New("the file descriptor that the pod sent is not a network namespace")

// check judges a descriptor that a pod has handed over.
func (a *agent) check(fd int) (namespaceID, error) {
	// The name is the kernel's for a namespace alone. Anything else is not asked
	// further: a file system of the pod's own (FUSE) could let a question hang.
	name, err := os.Readlink(descriptor(fd))
	if err != nil || !strings.HasPrefix(name, "net:[") {
		return namespaceID{}, errNoNetwork
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return namespaceID{}, errNoNetwork
	}
	id, err := namespaceAt(descriptor(fd))
	if err != nil {
		return id, err
	}
	if id == a.net {
		return id, errors.New("the pod is in the node's own network (hostNetwork), where nobody is served")
	}
	// A namespace of another user namespace is one in which the pod may be NET_ADMIN.
	foreign := errors.New("the pod's network namespace belongs to another user namespace than the node's: it has hostUsers: false, or it made the namespace itself; set hostUsers: true, or have it wired by its own imds-init")
	owner, err := unix.IoctlRetInt(fd, unix.NS_GET_USERNS)
	if err != nil { // EPERM: one that is not below the agent's
		return id, fmt.Errorf("%w (%v)", foreign, err)
	}
	defer unix.Close(owner)
	if user, err := namespaceAt(descriptor(owner)); err != nil || user != a.user {
		return id, errors.Join(foreign, err)
	}
	return id, nil
}
