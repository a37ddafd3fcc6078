package listen

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
)

// hold binds a TCP socket to an address and never listens on it, until it is
// closed. passt looks whether anybody has a local address that its guest connects
// to, by trying to bind it, and refuses the guest where nobody has: it cannot know
// of a redirection. The socket keeps nobody from listening there who sets
// SO_REUSEADDR, as passt does for the VM's own ports.
func hold(addr netip.AddrPort) (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	held := os.NewFile(uintptr(fd), addr.String())
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		held.Close()
		return nil, os.NewSyscallError("setsockopt SO_REUSEADDR", err)
	}
	err = syscall.Bind(fd, &syscall.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()})
	if err != nil && !errors.Is(err, syscall.EADDRINUSE) { // the VM has it: that serves as well
		held.Close()
		return nil, os.NewSyscallError("bind "+addr.String(), err)
	}
	return held, nil
}

// holdingListener holds another address for as long as it listens.
type holdingListener struct {
	net.Listener
	held *os.File
}

// Close ends both.
func (l *holdingListener) Close() error {
	return errors.Join(l.Listener.Close(), l.held.Close())
}
