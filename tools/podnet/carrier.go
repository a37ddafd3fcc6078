package podnet

import (
	"fmt"
	"net"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// carrierLimit is far more than the kernel ever takes to see that a tap was
// opened.
const carrierLimit = 5 * time.Second

// awaitCarrier runs open, which gives carrier to a tap, and returns when the
// kernel has acted on it: the bridge that the tap is a port of forwards, and
// sends itself. That takes the kernel a few milliseconds, and a guest far
// longer to boot. A frame that came in between would be lost, and ARP tries
// again only a second later.
func (n *Namespace) awaitCarrier(tap string, open func() error) error {
	events, err := n.linkEvents()
	if err != nil {
		return err
	}
	defer events.Close()
	if err := events.SetReadDeadline(time.Now().Add(carrierLimit)); err != nil {
		return err
	}
	if err := open(); err != nil {
		return err
	}
	message := make([]byte, unix.NLMSG_HDRLEN) // its rest is cut off: the link is asked for its state
	for {
		running, err := n.running(tap)
		if running || err != nil {
			return err
		}
		if _, err := events.Read(message); err != nil {
			return fmt.Errorf("carrier of %s in %s: %w", tap, n.name, err)
		}
	}
}

// running says whether frames pass a port and its bridge, as far as they are
// set up.
func (n *Namespace) running(port string) (bool, error) {
	link, err := n.link(port)
	if err != nil {
		return false, err
	}
	master := link.Attrs().MasterIndex
	if !isRunning(link) || master == 0 {
		return isRunning(link), nil
	}
	bridge, err := n.netlink.LinkByIndex(master)
	if err != nil {
		return false, fmt.Errorf("bridge of %s in %s: %w", port, n.name, err)
	}
	return isRunning(bridge), nil
}

// isRunning is true for an interface that is set down, too: it has no carrier
// to wait for.
func isRunning(link netlink.Link) bool {
	return link.Attrs().OperState == netlink.OperUp || link.Attrs().Flags&net.FlagUp == 0
}

// linkEvents opens a socket on which each change of a link is a message.
func (n *Namespace) linkEvents() (*os.File, error) {
	var file *os.File
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "link events")
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
			file.Close()
			return err
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("link events of %s: %w", n.name, err)
	}
	return file, nil
}
