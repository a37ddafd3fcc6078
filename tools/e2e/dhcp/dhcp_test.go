package dhcp

import (
	"net"
	"net/netip"
	"reflect"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/tools/podnet"
)

func TestMain(m *testing.M) { podnet.Main(m) }

var client = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}

func TestLeaseOfAPodTakesOverItsRoutes(t *testing.T) {
	podnet.Require(t)
	// What the CNI plugin flannel leaves, and Calico.
	flannel := func(*testing.T, *podnet.Pod, netlink.Link) {}
	calico := func(t *testing.T, p *podnet.Pod, eth0 netlink.Link) {
		handle := p.Pod.Netlink()
		old, err := handle.AddrList(eth0, netlink.FAMILY_V4)
		check(t, err)
		check(t, handle.AddrDel(eth0, &old[0])) // and with it its routes
		check(t, handle.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet("10.244.1.5/32")}))
		index := eth0.Attrs().Index
		check(t, handle.RouteAdd(&netlink.Route{LinkIndex: index, Dst: ipNet("169.254.1.1/32"), Scope: netlink.SCOPE_LINK}))
		check(t, handle.RouteAdd(&netlink.Route{LinkIndex: index, Gw: net.IPv4(169, 254, 1, 1)}))
	}
	for _, test := range []struct {
		name    string
		arrange func(*testing.T, *podnet.Pod, netlink.Link)
		want    Lease
	}{
		{"a network with a gateway in it", flannel, Lease{
			Address: netip.MustParsePrefix("10.244.1.5/24"),
			Router:  netip.MustParseAddr("10.244.1.1"),
			Routes:  []Route{{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.244.1.1")}},
			MTU:     1450,
		}},
		{"an address alone with a gateway on the link", calico, Lease{
			Address: netip.MustParsePrefix("10.244.1.5/32"),
			Router:  netip.MustParseAddr("169.254.1.1"),
			Routes: []Route{
				{netip.MustParsePrefix("169.254.1.1/32"), netip.Addr{}},
				{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("169.254.1.1")},
			},
			MTU: 1450,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := podnet.New(podnet.Options{Binding: podnet.Bridge, MTU: 1450})
			check(t, err)
			t.Cleanup(func() { p.Close() })
			eth0, err := p.Pod.Netlink().LinkByName("eth0")
			check(t, err)
			test.arrange(t, p, eth0)
			lease, err := OfInterface(p.Pod, "eth0")
			check(t, err)
			test.want.MAC = eth0.Attrs().HardwareAddr
			if !reflect.DeepEqual(lease, test.want) {
				t.Errorf("lease\n%+v, want\n%+v", lease, test.want)
			}
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ipNet(prefix string) *net.IPNet {
	ip, network, err := net.ParseCIDR(prefix)
	if err != nil {
		panic(err)
	}
	return &net.IPNet{IP: ip, Mask: network.Mask}
}

func question(t *testing.T, kind dhcpv4.MessageType, from net.HardwareAddr) *dhcpv4.DHCPv4 {
	t.Helper()
	q, err := dhcpv4.New(dhcpv4.WithHwAddr(from), dhcpv4.WithMessageType(kind))
	check(t, err)
	return q
}

func TestClientGetsItsLease(t *testing.T) {
	s := &Server{own: netip.MustParseAddr("169.254.75.10"), lease: Lease{
		MAC:     client,
		Address: netip.MustParsePrefix("10.244.1.5/32"),
		Router:  netip.MustParseAddr("169.254.1.1"),
		Routes: []Route{
			{netip.MustParsePrefix("169.254.1.1/32"), netip.Addr{}},
			{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("169.254.1.1")},
		},
		MTU: 9000,
	}}
	for asked, answer := range map[dhcpv4.MessageType]dhcpv4.MessageType{
		dhcpv4.MessageTypeDiscover: dhcpv4.MessageTypeOffer,
		dhcpv4.MessageTypeRequest:  dhcpv4.MessageTypeAck,
	} {
		t.Run(asked.String(), func(t *testing.T) {
			reply := s.reply(question(t, asked, client))
			if reply == nil {
				t.Fatal("no reply")
			}
			mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, reply.Options)
			check(t, err)
			type summary struct {
				kind                       dhcpv4.MessageType
				address, mask, router, own string
				routes                     string
				mtu                        uint16
			}
			got := summary{
				reply.MessageType(), reply.YourIPAddr.String(), net.IP(reply.SubnetMask()).String(), reply.Router()[0].String(),
				reply.ServerIdentifier().String(), dhcpv4.Routes(reply.ClasslessStaticRoute()).String(), mtu,
			}
			want := summary{
				answer, "10.244.1.5", "255.255.255.255", "169.254.1.1", "169.254.75.10",
				"route to 169.254.1.1/32 via 0.0.0.0; route to 0.0.0.0/0 via 169.254.1.1", 9000,
			}
			if got != want {
				t.Errorf("reply\n%+v, want\n%+v", got, want)
			}
			if lease := reply.IPAddressLeaseTime(0); lease != infinite {
				t.Errorf("lease of %s, want %s", lease, infinite)
			}
		})
	}
}

func TestNobodyElseAndNothingElseIsAnswered(t *testing.T) {
	s := &Server{own: podnet.MasqueradeGateway, lease: Masquerade(client, 1500)}
	stranger := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 2}
	for name, q := range map[string]*dhcpv4.DHCPv4{
		"another client": question(t, dhcpv4.MessageTypeDiscover, stranger),
		"a release":      question(t, dhcpv4.MessageTypeRelease, client),
		"an offer":       question(t, dhcpv4.MessageTypeOffer, client),
	} {
		if reply := s.reply(q); reply != nil {
			t.Errorf("%s is answered: %s", name, reply.Summary())
		}
	}
}
