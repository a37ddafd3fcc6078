package listen

import (
	"errors"
	"os"
	"syscall"
)

// events tells when a link or an address of the network namespace changes.
type events struct {
	socket *os.File
}

// subscribe opens a NETLINK_ROUTE socket. What changes after it returned is
// seen, so look at the links and addresses then and not before.
func subscribe() (*events, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, syscall.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket AF_NETLINK", err)
	}
	socket := os.NewFile(uintptr(fd), "netlink")
	const groups = rtmgrpLink | rtmgrpIPv4Ifaddr | rtmgrpIPv6Ifaddr
	if err := syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: groups}); err != nil {
		socket.Close()
		return nil, os.NewSyscallError("bind AF_NETLINK", err)
	}
	return &events{socket: socket}, nil
}

// Multicast groups of linux/rtnetlink.h.
const (
	rtmgrpLink       = 0x1
	rtmgrpIPv4Ifaddr = 0x10
	rtmgrpIPv6Ifaddr = 0x100
)

// next blocks until something changed. What it was does not matter, since
// everything is looked at again each time: a byte of the message is enough, the
// kernel drops the rest. ENOBUFS means that messages were lost: something
// changed.
func (e *events) next() error {
	var message [1]byte
	_, err := e.socket.Read(message[:])
	if errors.Is(err, syscall.ENOBUFS) {
		return nil
	}
	return err
}

// close ends a call of next with os.ErrClosed.
func (e *events) close() {
	e.socket.Close()
}
