package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// A hostile guest sends whatever it likes. Nothing that has to do with the
// metadata service gets beyond its own pod, and it stays served.
func TestHostileGuestReachesNobodyElse(t *testing.T) {
	guest, neighbour := podnet.PodAddr.AsSlice(), podnet.NeighbourAddr.AsSlice()
	address := wiring.Address.Addr().AsSlice()
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

	for _, binding := range []podnet.Binding{podnet.Bridge, podnet.ManagedTap} {
		t.Run(string(binding), func(t *testing.T) {
			pod, _ := servedPod(t, podnet.Options{Binding: binding})
			own, gateway := mac(t, pod.Guest, "eth0"), mac(t, pod.Neighbour, podnet.NeighbourInterface)
			uplink, err := podnet.Capture(pod.Neighbour, podnet.NeighbourInterface)
			must(t, err)

			for _, frame := range [][]byte{
				// claims the address before the neighbours
				arp(own, broadcast, 2, own, address, broadcast, address),
				arp(own, gateway, 2, own, address, gateway, neighbour),
				udp(own, gateway, address, neighbour, 0),
				// takes our MACs
				arp(wiring.DeviceMAC, broadcast, 1, wiring.DeviceMAC, guest, make([]byte, 6), neighbour),
				arp(wiring.PortMAC, broadcast, 1, wiring.PortMAC, guest, make([]byte, 6), neighbour),
				// asks for the address beyond the pod
				arp(own, broadcast, 1, own, guest, make([]byte, 6), address),
				arp(own, gateway, 1, own, guest, make([]byte, 6), address),
				udp(own, gateway, guest, address, 0),
				udp(own, broadcast, guest, address, 0),
				// from an address that is not its own
				udp(own, gateway, neighbour, address, 0),
				// in fragments: the first, a later one
				udp(own, gateway, guest, address, 0x2000),
				udp(own, gateway, guest, address, 0x00b9),
				// behind a tag that only gives a priority
				prioritized(udp(own, gateway, guest, address, 0)),
				prioritized(arp(own, broadcast, 1, own, guest, make([]byte, 6), address)),
			} {
				sendFrames(t, pod.Guest, "eth0", frame)
			}
			mustServe(t, pod, guestAddress(binding))
			pingGateway(t, pod)

			frames, err := uplink.Stop()
			must(t, err)
			reached := slices.ContainsFunc(frames, func(f podnet.Frame) bool { return !f.Outgoing })
			if !reached {
				t.Fatal("the capture saw nothing of the guest, so it proves nothing")
			}
			for _, frame := range frames {
				if frame.ConcernsMetadata() {
					t.Errorf("on the uplink: %v", frame)
				}
			}
		})
	}
}

// sendFrames puts Ethernet frames on an interface as they are.
func sendFrames(t *testing.T, n *podnet.Namespace, name string, frames ...[]byte) {
	t.Helper()
	must(t, n.Do(func() error {
		nic, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		defer unix.Close(fd)
		for _, frame := range frames {
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: nic.Index}); err != nil {
				return err
			}
		}
		return nil
	}))
}

func ethernet(source, target net.HardwareAddr, kind uint16) []byte {
	return binary.BigEndian.AppendUint16(slices.Concat(target, source), kind)
}

// arp is an ARP request (1) or reply (2) of RFC 826 in an Ethernet frame.
func arp(source, target net.HardwareAddr, operation byte, senderMAC, sender, targetMAC, wanted []byte) []byte {
	packet := []byte{0, 1, 8, 0, 6, 4, 0, operation}
	return slices.Concat(ethernet(source, target, unix.ETH_P_ARP), packet, senderMAC, sender, targetMAC, wanted)
}

// udp is an IPv4 packet (RFC 791) with a little payload in an Ethernet frame;
// fragment holds the header's flags and fragment offset.
func udp(source, target net.HardwareAddr, from, to []byte, fragment uint16) []byte {
	payload := []byte{0x30, 0x39, 0, 80, 0, 12, 0, 0, 'a', 's', 'k', 's'}
	return ipv4(source, target, unix.IPPROTO_UDP, from, to, fragment, payload)
}

// syn opens a TCP connection (RFC 9293) in an Ethernet frame.
func syn(source, target net.HardwareAddr, from, to []byte, port uint16) []byte {
	segment := binary.BigEndian.AppendUint16([]byte{0x30, 0x39}, port)
	segment = append(segment, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0)
	pseudo := slices.Concat(from, to, []byte{0, unix.IPPROTO_TCP, 0, byte(len(segment))}, segment)
	binary.BigEndian.PutUint16(segment[16:], checksum(pseudo))
	return ipv4(source, target, unix.IPPROTO_TCP, from, to, 0, segment)
}

func ipv4(source, target net.HardwareAddr, protocol byte, from, to []byte, fragment uint16, payload []byte) []byte {
	return ipv4WithOptions(source, target, protocol, from, to, fragment, nil, payload)
}

// ipv4WithOptions has options behind the header, a multiple of four bytes.
func ipv4WithOptions(source, target net.HardwareAddr, protocol byte, from, to []byte, fragment uint16, options, payload []byte) []byte {
	length := 20 + len(options)
	header := []byte{0x40 | byte(length/4), 0, 0, byte(length + len(payload)), 0, 1, byte(fragment >> 8), byte(fragment), 64, protocol, 0, 0}
	header = slices.Concat(header, from, to, options)
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return slices.Concat(ethernet(source, target, unix.ETH_P_IP), header, payload)
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// prioritized puts an 802.1Q tag into a frame that gives it a priority and no
// VLAN.
func prioritized(frame []byte) []byte { return tag(frame, unix.ETH_P_8021Q, 0) }
