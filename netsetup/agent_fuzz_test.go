package main

import (
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Whatever a pod says: what is taken of it is fit for the log and the kernel, and no
// descriptor is left behind.
func FuzzReceive(f *testing.F) {
	f.Add([]byte(honest), 1)
	f.Add([]byte(`{"version":1,"bridgeName":"k6t-eth0","redirectPort":60080}`), 1)
	f.Add([]byte(`{"version":1,"pod":"a/b"}`), 2)
	f.Add([]byte(`{"version":1e0}`), 0)
	f.Fuzz(func(t *testing.T, message []byte, descriptors int) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		ends := [2]*net.UnixConn{}
		for i, fd := range pair {
			file := os.NewFile(uintptr(fd), "pair")
			conn, err := net.FileConn(file)
			must(t, err)
			must(t, file.Close())
			ends[i] = conn.(*net.UnixConn)
			defer conn.Close()
		}
		var pipe [2]int
		must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
		defer unix.Close(pipe[0])
		defer unix.Close(pipe[1])
		var rights []int
		for range uint(descriptors) % 8 {
			rights = append(rights, pipe[0])
		}
		before := openDescriptors(t, pipe[0])
		must(t, say(ends[0], string(message)+" ", rights...))
		ends[1].SetReadDeadline(time.Now().Add(10 * time.Second))
		h, err := receive(ends[1])
		if err == nil {
			if to := h.target; len(h.Pod) > 253 || strings.ContainsAny(h.Namespace+h.Pod+h.VM, "/\n\"\\ ") ||
				validInterfaceName(to.bridgeName) != nil || validInterfaceName(to.preferredBridge) != nil ||
				to.redirectPort != 0 && to.redirectPort < lowestPort || h.network < 0 {
				t.Errorf("taken: %+v", h)
			}
		} else if h.network >= 0 {
			t.Errorf("a descriptor with %v", err)
		}
		h.close()
		if after := openDescriptors(t, pipe[0]); after != before {
			t.Errorf("%d descriptors, before %d", after, before)
		}
	})
}

// openDescriptors counts those that stand for the same as one of them.
func openDescriptors(t *testing.T, one int) (same int) {
	t.Helper()
	want, err := os.Readlink(descriptor(one))
	must(t, err)
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, fd := range all {
		if name, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && name == want {
			same++
		}
	}
	return same
}
