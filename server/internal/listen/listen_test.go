package listen

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/podnet/netnstest"
)

var (
	imdsAddr   = netip.MustParseAddrPort("169.254.169.254:80")
	imdsPrefix = netip.MustParsePrefix("169.254.169.254/32")
)

// following is a running Follow.
type following struct {
	lines  chan string // of the log
	cancel context.CancelFunc
	result chan error
}

// Write takes a line of the log.
func (f *following) Write(line []byte) (int, error) {
	f.lines <- string(line)
	return len(line), nil
}

// follow starts FollowAll with a server that sends a byte to whoever connects.
func follow(t *testing.T, sockets ...Socket) *following {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	f := &following{lines: make(chan string, 1000), cancel: cancel, result: make(chan error, 1)}
	log := slog.New(slog.NewTextHandler(f, nil))
	go func() {
		f.result <- FollowAll(ctx, sockets, log, func(listener net.Listener) error {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return err
				}
				conn.Write([]byte("."))
				conn.Close()
			}
		})
	}()
	return f
}

// wantLine waits for the next line of the log.
func (f *following) wantLine(t *testing.T, part string) {
	t.Helper()
	select {
	case line := <-f.lines:
		if !strings.Contains(line, part) {
			t.Fatalf("the log has the line %q, want one with %q", line, part)
		}
	case err := <-f.result:
		t.Fatalf("Follow returned %v, want the line %q", err, part)
	case <-time.After(20 * time.Second):
		t.Fatalf("the log has no new line, want one with %q", part)
	}
}

// wantLines waits for two lines of the log, in either order.
func (f *following) wantLines(t *testing.T, a, b string) {
	t.Helper()
	lines := <-f.lines + <-f.lines
	if !strings.Contains(lines, a) || !strings.Contains(lines, b) {
		t.Fatalf("the log has the lines %q, want one with %q and one with %q", lines, a, b)
	}
}

// stop ends Follow and checks that it was content, and logged nothing else.
func (f *following) stop(t *testing.T) {
	t.Helper()
	f.cancel()
	if err := <-f.result; err != nil {
		t.Errorf("Follow returned %v", err)
	}
	select {
	case line := <-f.lines:
		t.Errorf("the log has one more line: %s", line)
	default:
	}
}

// connect checks that a connection to addr is served.
func connect(addr netip.AddrPort) error {
	conn, err := net.DialTimeout("tcp", addr.String(), 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, err = bufio.NewReader(conn).ReadByte()
	return err
}

func wantServed(t *testing.T, addr netip.AddrPort) {
	t.Helper()
	if err := connect(addr); err != nil {
		t.Errorf("not served: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// makeEndpoint makes what imds-init makes.
func makeEndpoint(t *testing.T) {
	t.Helper()
	must(t, netnstest.AddVeth("veth-imds", "veth-imds-br", nil))
	must(t, netnstest.SetUp("veth-imds"))
	must(t, netnstest.SetUp("veth-imds-br"))
	must(t, netnstest.AddAddress("veth-imds", imdsPrefix))
}

func TestWaitsForTheDeviceAndThenForTheAddress(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		f := follow(t, Socket{Addr: imdsAddr, Device: "veth-imds"})
		f.wantLine(t, `msg=waiting for="device veth-imds"`)

		// Changes that are not the one waited for are not worth a line.
		must(t, netnstest.AddVeth("other", "other-peer", nil))
		must(t, netnstest.AddVeth("veth-imds", "veth-imds-br", nil))
		f.wantLine(t, `msg=waiting for="address 169.254.169.254"`)

		must(t, netnstest.SetUp("veth-imds"))
		must(t, netnstest.AddAddress("veth-imds", imdsPrefix))
		f.wantLine(t, "msg=listening address=169.254.169.254:80 device=veth-imds")
		wantServed(t, imdsAddr)
		f.stop(t)
	})
}

func TestWaitsForTheAddressWithoutADevice(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		f := follow(t, Socket{Addr: imdsAddr})
		f.wantLine(t, `msg=waiting for="address 169.254.169.254"`)
		must(t, netnstest.AddAddress("lo", imdsPrefix))
		f.wantLine(t, "msg=listening")
		wantServed(t, imdsAddr)
		f.stop(t)
	})
}

func TestWaitsForAnIPv6Address(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		addr := netip.MustParseAddrPort("[fd00:ec2::254]:80")
		f := follow(t, Socket{Addr: addr, Device: "lo", HopLimit: 1})
		f.wantLine(t, `msg=waiting for="address fd00:ec2::254"`)
		must(t, netnstest.AddAddress("lo", netip.MustParsePrefix("fd00:ec2::254/128")))
		f.wantLine(t, "msg=listening")
		wantServed(t, addr)
		f.stop(t)
	})
}

func TestStopsWhileItWaits(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		f := follow(t, Socket{Addr: imdsAddr, Device: "veth-imds"})
		f.wantLine(t, "msg=waiting")
		f.stop(t)
	})
}

func TestFollowsADeviceThatIsMadeAnew(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		makeEndpoint(t)
		f := follow(t, Socket{Addr: imdsAddr, Device: "veth-imds"})
		f.wantLine(t, "msg=listening")
		wantServed(t, imdsAddr)

		for range 3 {
			must(t, netnstest.DeleteLink("veth-imds"))
			f.wantLine(t, `msg=waiting for="device veth-imds"`)
			must(t, netnstest.AddVeth("veth-imds", "veth-imds-br", nil))
			f.wantLine(t, `msg=waiting for="address 169.254.169.254"`)
			must(t, netnstest.SetUp("veth-imds"))
			must(t, netnstest.AddAddress("veth-imds", imdsPrefix))
			f.wantLine(t, "msg=listening")
			wantServed(t, imdsAddr)
		}
		f.stop(t)
	})
}

func TestServesAnAddressThatComesBack(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		makeEndpoint(t)
		f := follow(t, Socket{Addr: imdsAddr, Device: "veth-imds"})
		f.wantLine(t, "msg=listening")

		must(t, netnstest.DeleteAddress("veth-imds", imdsPrefix))
		if err := connect(imdsAddr); err == nil {
			t.Error("served without the address")
		}
		must(t, netnstest.AddAddress("veth-imds", imdsPrefix))
		wantServed(t, imdsAddr)
		f.stop(t)
	})
}

// An address that is not there yet keeps no other from being served.
func TestEachAddressIsFollowedByItself(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		makeEndpoint(t)
		ipv6 := Socket{Addr: netip.MustParseAddrPort("[fe80::a9fe:a9fe]:80"), Device: "veth-imds"}
		f := follow(t, Socket{Addr: imdsAddr, Device: "veth-imds"}, ipv6)
		f.wantLines(t, "msg=listening address=169.254.169.254:80", `msg=waiting for="address fe80::a9fe:a9fe"`)
		wantServed(t, imdsAddr)
		must(t, netnstest.AddAddress("veth-imds", netip.MustParsePrefix("fe80::a9fe:a9fe/64")))
		f.wantLine(t, "msg=listening address=[fe80::a9fe:a9fe]:80")
		wantServed(t, netip.MustParseAddrPort("[fe80::a9fe:a9fe%veth-imds]:80"))
		wantServed(t, imdsAddr)
		f.stop(t)
	})
}

func TestOneAddressThatCannotBeHadEndsAll(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	f := follow(t, Socket{Addr: netip.MustParseAddrPort("127.0.0.1:0")}, Socket{Addr: netip.MustParseAddrPort(taken.Addr().String())})
	if err := <-f.result; !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v, want that the port is in use", err)
	}
}

func TestKernelWithoutIPv6IsWaitedFor(t *testing.T) {
	err := Socket{Addr: netip.MustParseAddrPort("[fe80::a9fe:a9fe]:80")}.explain(os.NewSyscallError("socket", syscall.EAFNOSUPPORT))
	if missing, ok := errors.AsType[*missingError](err); !ok || !strings.Contains(missing.what, "IPv6 in the kernel") {
		t.Errorf("got %v, want that IPv6 is missing", err)
	}
}

// Who is behind the device is served, who is behind another one is not, although
// the address is local there too.
func TestOnlyTheDeviceIsServed(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		guest, neighbour := netnstest.New(t), netnstest.New(t)
		must(t, netnstest.AddVeth("veth-imds", "eth0", guest))
		must(t, netnstest.AddVeth("uplink", "eth0", neighbour))
		must(t, netnstest.AddAddress("veth-imds", imdsPrefix))
		must(t, netnstest.AddAddress("uplink", netip.MustParsePrefix("169.254.2.1/24")))
		must(t, netnstest.SetUp("veth-imds"))
		must(t, netnstest.SetUp("uplink"))
		guest.Do(t, func() error {
			return errors.Join(netnstest.AddAddress("eth0", netip.MustParsePrefix("169.254.1.2/16")), netnstest.SetUp("eth0"))
		})
		neighbour.Do(t, func() error {
			return errors.Join(netnstest.AddAddress("eth0", netip.MustParsePrefix("169.254.2.2/16")), netnstest.SetUp("eth0"))
		})

		bound := follow(t, Socket{Addr: imdsAddr, Device: "veth-imds"})
		bound.wantLine(t, "msg=listening")
		unbound := follow(t, Socket{Addr: netip.MustParseAddrPort("169.254.169.254:81")})
		unbound.wantLine(t, "msg=listening")

		guest.Do(t, func() error { return connect(imdsAddr) })
		wantServed(t, imdsAddr) // the pod itself
		neighbour.Do(t, func() error {
			if err := connect(imdsAddr); !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("the neighbour got %v, want that the connection is refused", err)
			}
			// The neighbour does reach the pod: it is the device that keeps it out.
			return connect(netip.MustParseAddrPort("169.254.169.254:81"))
		})
		bound.stop(t)
		unbound.stop(t)
	})
}

func TestLostMessagesCountAsAChange(t *testing.T) {
	netnstest.Run(t, func(t *testing.T) {
		overflowing := func() *events {
			e, err := subscribe()
			must(t, err)
			t.Cleanup(e.close)
			raw, err := e.socket.SyscallConn()
			must(t, err)
			must(t, raw.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1)
			}))
			must(t, err)
			for range 50 { // more messages than the buffer holds
				must(t, netnstest.AddAddress("lo", imdsPrefix))
				must(t, netnstest.DeleteAddress("lo", imdsPrefix))
			}
			return e
		}
		if _, err := overflowing().socket.Read(make([]byte, 1)); !errors.Is(err, syscall.ENOBUFS) {
			t.Fatalf("the kernel lost no message, its answer is %v", err)
		}
		must(t, overflowing().next())
	})
}

func TestClosedEventsEnd(t *testing.T) {
	e, err := subscribe()
	must(t, err)
	e.close()
	if err := e.next(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v, want os.ErrClosed", err)
	}
}

func TestPortThatNeedsAPrivilegeNamesTheSysctl(t *testing.T) {
	err := Socket{Addr: imdsAddr}.explain(os.NewSyscallError("bind", syscall.EACCES))
	if want := "net.ipv4.ip_unprivileged_port_start to 80 or less"; !strings.Contains(err.Error(), want) {
		t.Errorf("the error names not %q: %v", want, err)
	}
}

func TestPortInUseEndsFollow(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	f := follow(t, Socket{Addr: netip.MustParseAddrPort(taken.Addr().String())})
	err = <-f.result
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("got %v, want that another process has the port", err)
	}
}

func TestServeThatGivesUpEndsFollow(t *testing.T) {
	gaveUp := errors.New("gave up")
	err := Follow(t.Context(), Socket{Addr: netip.MustParseAddrPort("127.0.0.1:0")}, slog.New(slog.DiscardHandler),
		func(net.Listener) error { return gaveUp })
	if !errors.Is(err, gaveUp) {
		t.Errorf("got %v, want that it gave up", err)
	}
}

// The options are set on the listener, and what it accepts must have them.
func TestConnectionsInheritTheOptions(t *testing.T) {
	netnstest.Run(t, checkInheritedOptions)
}

func checkInheritedOptions(t *testing.T) {
	tests := map[string]struct {
		addr          string
		level, option int
	}{
		"IPv4": {"127.0.0.1:0", syscall.IPPROTO_IP, syscall.IP_TTL},
		"IPv6": {"[::1]:0", syscall.IPPROTO_IPV6, syscall.IPV6_UNICAST_HOPS},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			socket := Socket{Addr: netip.MustParseAddrPort(test.addr), Device: "lo", HopLimit: 7}
			listener, index, err := socket.listen(t.Context())
			must(t, err)
			defer listener.Close()
			if lo, err := net.InterfaceByName("lo"); err != nil || index != lo.Index {
				t.Errorf("got device index %d, want that of %+v (error %v)", index, lo, err)
			}
			client, err := net.Dial("tcp", listener.Addr().String())
			must(t, err)
			defer client.Close()
			conn, err := listener.Accept()
			must(t, err)
			defer conn.Close()

			raw, err := conn.(*net.TCPConn).SyscallConn()
			must(t, err)
			for _, want := range []struct {
				name                 string
				level, option, value int
			}{
				{"hop limit", test.level, test.option, 7},
				{"SO_RCVBUF", syscall.SOL_SOCKET, syscall.SO_RCVBUF, 2 * receiveBuffer},
				{"SO_SNDBUF", syscall.SOL_SOCKET, syscall.SO_SNDBUF, 2 * sendBuffer},
				{"TCP_USER_TIMEOUT", syscall.IPPROTO_TCP, tcpUserTimeout, 10000},
				{"SO_KEEPALIVE", syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 0},
			} {
				must(t, raw.Control(func(fd uintptr) {
					got, err := syscall.GetsockoptInt(int(fd), want.level, want.option)
					if err != nil || got != want.value {
						t.Errorf("%s is %d (error %v), want %d", want.name, got, err, want.value)
					}
				}))
			}
		})
	}
}
