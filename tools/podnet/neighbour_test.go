package podnet

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// unprotectedService puts the metadata address on the pod's lo, with an
// ordinary listener where serving. The VM of such a pod must list ports, or
// masquerade hands everything to the guest.
func unprotectedService(t *testing.T, p *Pod, serving bool) {
	t.Helper()
	lo, err := p.Pod.link("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Pod.assign(lo, netip.PrefixFrom(MetadataAddr, 32)); err != nil {
		t.Fatal(err)
	}
	if serving {
		serve(t, p.Pod, "169.254.169.254:80")
	}
}

// The attacks are only worth something if they succeed where nothing guards the
// pod.
func TestNeighbourIsAnsweredByAnUnprotectedPod(t *testing.T) {
	for _, way := range []string{"by ARP", "by the pod's MAC"} {
		t.Run(way, func(t *testing.T) {
			p := runningPod(t, Options{Ports: []uint16{22}})
			unprotectedService(t, p, true)
			reply := neighbourAsks(t, p, way == "by the pod's MAC", 10*time.Second)
			if reply.Outcome != Answered || reply.Status != http.StatusOK || reply.Body != "10.244.1.1" {
				t.Errorf("%+v", reply)
			}
		})
	}
}

func TestNeighbourIsRefusedWhereNobodyListens(t *testing.T) {
	p := runningPod(t, Options{Ports: []uint16{22}})
	unprotectedService(t, p, false)
	if reply := neighbourAsks(t, p, false, 10*time.Second); reply.Outcome != Refused {
		t.Errorf("%+v", reply)
	}
}

func TestNeighbourIsRefusedByTheGuestThatAllPortsAreForwardedTo(t *testing.T) {
	p := runningPod(t, Options{})
	if reply := neighbourAsks(t, p, true, 10*time.Second); reply.Outcome != Refused {
		t.Errorf("%+v", reply)
	}
}

func TestNeighbourHearsNothingFromAnEmptyPod(t *testing.T) {
	for name, options := range map[string]Options{
		"masquerade of listed ports": {Ports: []uint16{22}},
		"bridge":                     {Binding: Bridge},
		"managedTap":                 {Binding: ManagedTap},
	} {
		t.Run(name, func(t *testing.T) {
			p := runningPod(t, options)
			for _, forced := range []bool{false, true} {
				if reply := neighbourAsks(t, p, forced, 200*time.Millisecond); reply.Outcome != NoAnswer {
					t.Errorf("with the pod's MAC %t: %+v", forced, reply)
				}
			}
		})
	}
}

func TestAttacksLeaveTheNeighbourAsItWas(t *testing.T) {
	for _, network := range []Network{Subnet, Routed} {
		t.Run(string(network), func(t *testing.T) {
			p := runningPod(t, Options{Binding: Bridge, Network: network})
			before := state(t, p.Neighbour)
			neighbourAsks(t, p, false, 100*time.Millisecond)
			neighbourAsks(t, p, true, 100*time.Millisecond)
			impostor, err := p.Impersonate(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := impostor.Stop(); err != nil {
				t.Fatal(err)
			}
			if after := state(t, p.Neighbour); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

func TestImpostorIsBelievedByTheGuestOfAnUnprotectedPod(t *testing.T) {
	p := runningPod(t, Options{Binding: Bridge})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	impostor, err := p.Impersonate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	mustGet(t, p.Guest, "http://169.254.169.254/v1/token", ImpostorBody)
	if impostor.Requests() != 1 {
		t.Errorf("the impostor counts %d requests, want 1", impostor.Requests())
	}
	cancel()
	if err := impostor.Stop(); err != nil {
		t.Error(err)
	}
}

func TestImpostorsFalseARPReachesThePod(t *testing.T) {
	p := runningPod(t, Options{Binding: Bridge})
	recording, err := Capture(p.Pod, "eth0-nic")
	if err != nil {
		t.Fatal(err)
	}
	impostor, err := p.Impersonate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	up0, err := p.Neighbour.MAC(NeighbourInterface)
	if err != nil {
		t.Fatal(err)
	}
	guest, err := p.Guest.MAC("eth0")
	if err != nil {
		t.Fatal(err)
	}
	ctx := within(t, 10*time.Second)
	for _, want := range []string{
		fmt.Sprintf("in %s > ff:ff:ff:ff:ff:ff, ethertype 0x0806: 00010800060400 01", up0),
		fmt.Sprintf("in %s > ff:ff:ff:ff:ff:ff, ethertype 0x0806: 00010800060400 02", up0),
		fmt.Sprintf("in %s > %s, ethertype 0x0806: 00010800060400 02", up0, guest),
	} {
		want = strings.ReplaceAll(want, "00 0", "000")
		if err := recording.Wait(ctx, func(f Frame) bool {
			return f.ConcernsMetadata() && strings.HasPrefix(f.String(), want)
		}); err != nil {
			t.Errorf("no frame %s: %v", want, err)
		}
	}
	if err := impostor.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := recording.Stop(); err != nil {
		t.Error(err)
	}
}

func neighbourAsks(t *testing.T, p *Pod, forced bool, limit time.Duration) Reply {
	t.Helper()
	var mac net.HardwareAddr
	if forced {
		var err error
		if mac, err = p.Pod.MAC("eth0"); err != nil {
			t.Fatal(err)
		}
	}
	reply, err := p.NeighbourAsks(within(t, limit), mac)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// state is all that an attack could leave behind.
func state(t *testing.T, n *Namespace) string {
	t.Helper()
	up, err := n.link(NeighbourInterface)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	addrs, err := n.netlink.AddrList(up, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		lines = append(lines, "address "+a.IPNet.String())
	}
	routes, err := n.netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		lines = append(lines, "route "+r.String())
	}
	neighbours, err := n.netlink.NeighList(up.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range neighbours {
		if e.IP.Equal(MetadataAddr.AsSlice()) {
			lines = append(lines, "neighbour "+e.String())
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
