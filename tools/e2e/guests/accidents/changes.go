package accidents

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// changes tells when something in a pod's network has changed.
type changes struct {
	happened chan struct{}
	sockets  []*os.File

	mu    sync.Mutex
	first time.Time // of the changes since mark
}

// mark has the next change be the first.
func (c *changes) mark() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first = time.Time{}
}

// since is when the kernel told of the first change since mark, or else a time that is given.
func (c *changes) since(otherwise time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first.IsZero() {
		return otherwise
	}
	return c.first
}

// watched are the kernel's notifications that concern a state.
var watched = []struct {
	protocol int
	groups   uint32
}{
	{unix.NETLINK_ROUTE, 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_NEIGH-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) |
		1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV4_RULE-1) |
		1<<(unix.RTNLGRP_IPV6_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_RULE-1)},
	{unix.NETLINK_NETFILTER, 1 << (unix.NFNLGRP_NFTABLES - 1)},
}

// watchChanges tells of all changes from now on.
func watchChanges(pod *podnet.Namespace) (*changes, error) {
	c := &changes{happened: make(chan struct{}, 1)}
	for _, w := range watched {
		err := pod.Do(func() error {
			fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, w.protocol)
			if err != nil {
				return err
			}
			c.sockets = append(c.sockets, os.NewFile(uintptr(fd), "changes"))
			return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: w.groups})
		})
		if err != nil {
			c.close()
			return nil, err
		}
	}
	for _, socket := range c.sockets {
		go c.forward(socket)
	}
	return c, nil
}

func (c *changes) close() {
	for _, socket := range c.sockets {
		socket.Close()
	}
}

// forward looks at nothing but that there is a message; where some were lost (ENOBUFS), there was a change.
func (c *changes) forward(socket *os.File) {
	message := make([]byte, unix.NLMSG_HDRLEN)
	for {
		if _, err := socket.Read(message); errors.Is(err, os.ErrClosed) {
			return
		}
		c.mu.Lock()
		if c.first.IsZero() {
			c.first = time.Now()
		}
		c.mu.Unlock()
		select {
		case c.happened <- struct{}{}:
		default: // nobody has looked yet
		}
	}
}
