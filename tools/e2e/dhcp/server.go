package dhcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// largestPacket holds what a client on Ethernet sends, in bytes.
const largestPacket = 1500

// Server answers until it is closed.
type Server struct {
	socket net.PacketConn
	own    netip.Addr
	lease  Lease
	work   sync.WaitGroup
}

// Serve starts a server on a bridge of the pod. own is the address that it names as its own: the bridge's. Where
// the bridge is deleted and made anew, another server has to be started.
func Serve(pod *podnet.Namespace, bridge string, own netip.Addr, lease Lease) (*Server, error) {
	s := &Server{own: own, lease: lease}
	listen := net.ListenConfig{Control: func(_, _ string, socket syscall.RawConn) (err error) {
		outer := socket.Control(func(fd uintptr) {
			err = errors.Join(
				unix.BindToDevice(int(fd), bridge),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
			)
		})
		return errors.Join(outer, err)
	}}
	err := pod.Do(func() (err error) {
		s.socket, err = listen.ListenPacket(context.Background(), "udp4", fmt.Sprintf(":%d", dhcpv4.ServerPort))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("DHCP server on %s: %w", bridge, err)
	}
	s.work.Go(s.answer)
	return s, nil
}

// Close stops the server.
func (s *Server) Close() error {
	err := s.socket.Close()
	s.work.Wait()
	return err
}

func (s *Server) answer() {
	packet := make([]byte, largestPacket)
	for {
		n, _, err := s.socket.ReadFrom(packet)
		if errors.Is(err, unix.ENETDOWN) {
			continue // said once when the bridge goes down
		}
		if err != nil {
			return
		}
		question, err := dhcpv4.FromBytes(packet[:n])
		if err != nil {
			continue
		}
		if reply := s.reply(question); reply != nil {
			// The client has no address yet, or renews the one that it has: everybody is told.
			s.socket.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort})
		}
	}
}

// reply is nil where there is nothing to say.
func (s *Server) reply(question *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	if !bytes.Equal(question.ClientHWAddr, s.lease.MAC) {
		return nil
	}
	var kind dhcpv4.MessageType
	switch question.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		kind = dhcpv4.MessageTypeAck
	default:
		return nil
	}
	reply, err := dhcpv4.NewReplyFromRequest(question, slices.Concat(s.lease.options(), []dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithServerIP(s.own.AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(s.own.AsSlice())),
	})...)
	if err != nil {
		return nil
	}
	return reply
}
