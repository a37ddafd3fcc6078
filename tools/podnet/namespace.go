package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace that lives as long as this value is open, or
// a process is in it.
type Namespace struct {
	name    string
	file    *os.File
	netlink *netlink.Handle
	close   sync.Once
}

// NewNamespace makes a network namespace in which only lo exists, and is up.
// The name is for error messages.
func NewNamespace(name string) (*Namespace, error) {
	n := &Namespace{name: name}
	err := onDiscardedThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		var err error
		if n.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		n.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err == nil {
		err = n.setUp("lo")
	}
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("making the network namespace %s: %w", name, err)
	}
	return n, nil
}

// NamespaceOf opens the network namespace that a process is in.
func NamespaceOf(pid int) (*Namespace, error) {
	return OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", pid))
}

// OpenNamespace opens the network namespace that a file stands for.
func OpenNamespace(path string) (*Namespace, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	n := &Namespace{name: path, file: file}
	err = n.Do(func() (err error) { n.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err })
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Do runs f inside the namespace, on a thread of its own that is thrown away
// afterwards. Goroutines that f starts run outside. Sockets that f makes belong
// to the namespace for good.
func (n *Namespace) Do(f func() error) error {
	return onDiscardedThread(func() error {
		if err := n.enter(); err != nil {
			return fmt.Errorf("entering the network namespace %s: %w", n.name, err)
		}
		return f()
	})
}

// enter moves the thread. Unlike File.Fd it is safe beside Close: an HTTP
// client may still be dialing that was given up long ago.
func (n *Namespace) enter() error {
	raw, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	if closed := raw.Control(func(fd uintptr) { err = unix.Setns(int(fd), unix.CLONE_NEWNET) }); closed != nil {
		return os.ErrClosed
	}
	return err
}

// Netlink returns the namespace's rtnetlink handle, which [Namespace.Close]
// closes. It may be used from several goroutines.
func (n *Namespace) Netlink() *netlink.Handle { return n.netlink }

// Nftables returns a connection to the namespace's nf_tables.
func (n *Namespace) Nftables() (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(n.FD()))
}

// Sysctl sets a key such as net.ipv4.ip_forward. As with sysctl(8), a key with
// slashes is taken as it is: for interface names that hold a dot.
func (n *Namespace) Sysctl(key, value string) error {
	path := key
	if !strings.Contains(path, "/") {
		path = strings.ReplaceAll(path, ".", "/")
	}
	err := n.Do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0)
	})
	if err != nil {
		return fmt.Errorf("sysctl %s=%s in %s: %w", key, value, n.name, err)
	}
	return nil
}

// Dial connects from inside the namespace. The address holds an IP address, not
// a name: resolvers are of the outside.
func (n *Namespace) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial %q: use an IP address and a port: %w", address, err)
	}
	var conn net.Conn
	err := n.Do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens inside the namespace. As for [Namespace.Dial], the address
// holds an IP address or no host at all.
func (n *Namespace) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	var listener net.Listener
	err := n.Do(func() (err error) {
		listener, err = (&net.ListenConfig{}).Listen(ctx, network, address)
		return err
	})
	return listener, err
}

// HTTPClient returns a client whose requests leave from inside the namespace,
// each by a connection of its own, as those of successive runs of curl do. It
// follows no redirect and knows no proxy.
func (n *Namespace) HTTPClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DialContext: n.Dial, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Start starts cmd inside the namespace. The process ends with this one at the
// latest, however that ends.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// In a new pid namespace package syscall sees no parent and takes it for gone; the
	// SIGKILL that it sends itself then does not reach the first process there.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started := make(chan error, 1)
	go func() {
		err := n.Do(func() error {
			err := cmd.Start()
			started <- err
			if err == nil {
				// The kernel takes the end of the thread that started a process
				// for the end of its parent.
				awaitEnd(cmd.Process.Pid)
			}
			return nil
		})
		if err != nil {
			started <- err
		}
	}()
	return <-started
}

// awaitEnd returns when a child has ended, and leaves it for exec.Cmd.Wait.
func awaitEnd(pid int) {
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
}

// Path is the namespace's file, for nsenter --net and the like. It holds while
// this process lives and the namespace is open.
func (n *Namespace) Path() string {
	// Not os.Getpid: in a PID namespace of its own a process may have another
	// number there than in /proc.
	self, err := os.Readlink("/proc/self")
	if err != nil {
		self = "self"
	}
	return fmt.Sprintf("/proc/%s/fd/%d", self, n.file.Fd())
}

// MAC returns the hardware address of an interface.
func (n *Namespace) MAC(name string) (net.HardwareAddr, error) {
	link, err := n.link(name)
	if err != nil {
		return nil, err
	}
	return link.Attrs().HardwareAddr, nil
}

// Close gives the namespace up. It may be called twice.
func (n *Namespace) Close() error {
	var err error
	n.close.Do(func() {
		if n.netlink != nil {
			n.netlink.Close()
		}
		if n.file != nil {
			err = n.file.Close()
		}
	})
	return err
}

// FD is the namespace's file descriptor, for netlink.NsFd and the like.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

func (n *Namespace) link(name string) (netlink.Link, error) {
	link, err := n.netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s in %s: %w", name, n.name, err)
	}
	return link, nil
}

func (n *Namespace) setUp(name string) error {
	link, err := n.link(name)
	if err != nil {
		return err
	}
	return n.netlink.LinkSetUp(link)
}

// remove deletes an interface. That it is not there is no error.
func (n *Namespace) remove(name string) error {
	link, err := n.netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("interface %s in %s: %w", name, n.name, err)
	}
	return n.netlink.LinkDel(link)
}

// assign gives an address to an interface, with the broadcast address that
// belongs to it, and without IPv6's duplicate address detection, which would take
// a second.
func (n *Namespace) assign(link netlink.Link, addr netip.Prefix) error {
	ip := addr.Addr().AsSlice()
	ones := net.CIDRMask(addr.Bits(), len(ip)*8)
	address := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: ones}}
	if addr.Addr().Is6() {
		address.Flags = unix.IFA_F_NODAD
	}
	err := n.netlink.AddrAdd(link, address)
	if err != nil {
		return fmt.Errorf("address %s on %s in %s: %w", addr, link.Attrs().Name, n.name, err)
	}
	return nil
}
