package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// Socket says what to listen on.
type Socket struct {
	// Addr is the address and port.
	Addr netip.AddrPort
	// Device is the network device that connections must arrive on; empty means
	// any.
	Device string
	// HopLimit is the TTL of what is sent, 1 to 255; 0 means the kernel's default.
	HopLimit int
	// Hold is an IPv4 address and port, not to listen on, but to hold for as long: see
	// hold. The zero value holds nothing.
	Hold netip.AddrPort
}

// Options of the connections, which inherit them from the listener.
const (
	// receiveBuffer and sendBuffer bound what the kernel holds for a connection,
	// in bytes, which it doubles for its own needs. A request has a few hundred
	// bytes, an answer about 1,500.
	receiveBuffer = 8 << 10
	sendBuffer    = 16 << 10
	// userTimeout is how long the kernel keeps what a peer does not acknowledge,
	// also after the connection was closed.
	userTimeout = 10 * time.Second
)

// tcpUserTimeout is TCP_USER_TIMEOUT of linux/tcp.h.
const tcpUserTimeout = 18

// missingError says what has to appear before the socket can listen.
type missingError struct {
	what string
}

func (e *missingError) Error() string {
	return e.what + " is missing"
}

// listen opens the socket, and returns it with the index of its device. The
// error is a *missingError if waiting helps.
func (s Socket) listen(ctx context.Context) (net.Listener, int, error) {
	// The index is looked up first. If the device is replaced in between, the
	// index is seen to be the old one and the socket is opened again.
	index, err := s.deviceIndex()
	if err != nil {
		return nil, 0, err
	}
	network := "tcp4"
	if s.Addr.Addr().Is6() {
		network = "tcp6"
	}
	config := net.ListenConfig{
		Control:   s.control,
		KeepAlive: -1, // the server's timeouts end a silent connection earlier
	}
	config.SetMultipathTCP(false) // it knows not all of the options, and the guest has one path
	listener, err := config.Listen(ctx, network, s.Addr.String())
	if err != nil {
		return nil, 0, s.explain(err)
	}
	if !s.Hold.IsValid() {
		return listener, index, nil
	}
	held, err := hold(s.Hold)
	if err != nil {
		listener.Close()
		return nil, 0, s.explain(err)
	}
	return &holdingListener{listener, held}, index, nil
}

// deviceIndex returns the interface index of the device, 0 if there is none to
// bind to.
func (s Socket) deviceIndex() (int, error) {
	if s.Device == "" {
		return 0, nil
	}
	devices, err := net.Interfaces()
	if err != nil {
		return 0, fmt.Errorf("cannot list the network devices: %w", err)
	}
	for _, device := range devices {
		if device.Name == s.Device {
			return device.Index, nil
		}
	}
	return 0, s.missingDevice()
}

// control sets the options of the socket before it is bound.
func (s Socket) control(_, _ string, conn syscall.RawConn) error {
	var optionErr error
	err := conn.Control(func(fd uintptr) { optionErr = s.setOptions(int(fd)) })
	return errors.Join(err, optionErr)
}

func (s Socket) setOptions(fd int) error {
	if s.Device != "" {
		// Free for any user since Linux 5.7, as long as the socket has no device.
		if err := syscall.BindToDevice(fd, s.Device); err != nil {
			return os.NewSyscallError("setsockopt SO_BINDTODEVICE", err)
		}
	}
	options := []struct {
		name                 string
		level, option, value int
	}{
		{"SO_RCVBUF", syscall.SOL_SOCKET, syscall.SO_RCVBUF, receiveBuffer},
		{"SO_SNDBUF", syscall.SOL_SOCKET, syscall.SO_SNDBUF, sendBuffer},
		{"TCP_USER_TIMEOUT", syscall.IPPROTO_TCP, tcpUserTimeout, int(userTimeout.Milliseconds())},
	}
	for _, o := range options {
		if err := syscall.SetsockoptInt(fd, o.level, o.option, o.value); err != nil {
			return os.NewSyscallError("setsockopt "+o.name, err)
		}
	}
	return s.setHopLimit(fd)
}

func (s Socket) setHopLimit(fd int) error {
	if s.HopLimit == 0 {
		return nil
	}
	if s.Addr.Addr().Is6() {
		return os.NewSyscallError("setsockopt IPV6_UNICAST_HOPS",
			syscall.SetsockoptInt(fd, syscall.IPPROTO_IPV6, syscall.IPV6_UNICAST_HOPS, s.HopLimit))
	}
	return os.NewSyscallError("setsockopt IP_TTL",
		syscall.SetsockoptInt(fd, syscall.IPPROTO_IP, syscall.IP_TTL, s.HopLimit))
}

// explain tells what is only missing yet, and adds the remedy to the rest.
func (s Socket) explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENODEV):
		return s.missingDevice()
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return &missingError{what: "address " + s.Addr.Addr().String()}
	case errors.Is(err, syscall.EAFNOSUPPORT):
		// No event will come, and none is needed: the other addresses serve.
		return &missingError{what: "IPv6 in the kernel, for " + s.Addr.Addr().String()}
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("cannot listen on %s: %w; another process of the pod has this port", s.Addr, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("cannot listen on %s: %w; set the pod's sysctl net.ipv4.ip_unprivileged_port_start to %d or less", s.Addr, err, s.lowestPort())
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("cannot listen on device %s: %w; this needs Linux 5.7 or newer", s.Device, err)
	default:
		return fmt.Errorf("cannot listen on %s: %w", s.Addr, err)
	}
}

// lowestPort is the lower one of the ports that are bound.
func (s Socket) lowestPort() uint16 {
	if s.Hold.IsValid() {
		return min(s.Addr.Port(), s.Hold.Port())
	}
	return s.Addr.Port()
}

func (s Socket) missingDevice() error {
	return &missingError{what: "device " + s.Device}
}
