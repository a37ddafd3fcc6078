package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// accidents happen to the wiring of a pod whose guest is served.
var accidents = []struct {
	name   string
	happen func(t *testing.T, pod *podnet.Pod)
	says   string                      // what imds-init logs once it has healed, or has seen that nothing can be
	mend   func(pod *podnet.Pod) error // what it cannot do by itself
}{
	{"somebody deletes veth-imds", func(t *testing.T, pod *podnet.Pod) { deleteLink(t, pod, wiring.Device) }, "msg=repaired", nil},
	{"somebody deletes veth-imds-br", func(t *testing.T, pod *podnet.Pod) { deleteLink(t, pod, wiring.Port) }, "msg=repaired", nil},
	{"somebody puts a link of another kind in its place", func(t *testing.T, pod *podnet.Pod) {
		deleteLink(t, pod, wiring.Device)
		// imds-init may be faster; then there is nothing to replace.
		pod.Pod.Netlink().LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: wiring.Device}})
	}, "msg=repaired", nil},
	{"somebody deletes the address", func(t *testing.T, pod *podnet.Pod) {
		deleteAddress(t, pod, netlink.FAMILY_V4)
	}, "msg=repaired", nil},
	{"somebody deletes the IPv6 address", func(t *testing.T, pod *podnet.Pod) {
		deleteAddress(t, pod, netlink.FAMILY_V6)
	}, "msg=repaired", nil},
	{"somebody deletes the route of the IPv6 address", func(t *testing.T, pod *podnet.Pod) {
		must(t, pod.Pod.Netlink().RouteDel(&netlink.Route{
			LinkIndex: link(t, pod, wiring.Device).Attrs().Index,
			Dst:       &net.IPNet{IP: net.ParseIP("fe80::"), Mask: net.CIDRMask(64, 128)},
		}))
	}, "msg=repaired", nil},
	{"somebody sets veth-imds down", func(t *testing.T, pod *podnet.Pod) {
		must(t, pod.Pod.Netlink().LinkSetDown(link(t, pod, wiring.Device)))
	}, "msg=repaired", nil},
	{"somebody sets veth-imds-br down", func(t *testing.T, pod *podnet.Pod) {
		must(t, pod.Pod.Netlink().LinkSetDown(link(t, pod, wiring.Port)))
	}, "msg=repaired", nil},
	{"somebody takes veth-imds-br off the bridge", func(t *testing.T, pod *podnet.Pod) {
		must(t, pod.Pod.Netlink().LinkSetNoMaster(link(t, pod, wiring.Port)))
	}, "msg=repaired", nil},
	{"somebody ends the isolation of veth-imds-br", func(t *testing.T, pod *podnet.Pod) {
		must(t, pod.Pod.Netlink().LinkSetIsolated(link(t, pod, wiring.Port), false))
	}, "msg=repaired", nil},
	{"somebody deletes the rules of the bridge family", func(t *testing.T, pod *podnet.Pod) {
		deleteTable(t, pod, nftables.TableFamilyBridge)
	}, "msg=repaired", nil},
	{"somebody deletes the rules of the ip family", func(t *testing.T, pod *podnet.Pod) {
		deleteTable(t, pod, nftables.TableFamilyIPv4)
	}, "msg=repaired", nil},
	{"somebody deletes the rules of the ip6 family", func(t *testing.T, pod *podnet.Pod) {
		deleteTable(t, pod, nftables.TableFamilyIPv6)
	}, "msg=repaired", nil},
	{"somebody makes the rules dormant", func(t *testing.T, pod *podnet.Pod) {
		inPod(t, pod, "nft", "add table bridge imds { flags dormant; }")
	}, "msg=repaired", nil},
	{"somebody changes a chain's policy", func(t *testing.T, pod *podnet.Pod) {
		inPod(t, pod, "nft", "chain ip imds input { policy drop; }")
	}, "msg=repaired", nil},
	{"somebody adds a rule before ours", func(t *testing.T, pod *podnet.Pod) {
		inPod(t, pod, "nft", "insert rule bridge imds prerouting accept")
	}, "msg=repaired", nil},
	{"somebody sets ARP off", func(t *testing.T, pod *podnet.Pod) {
		must(t, pod.Pod.Netlink().LinkSetARPOff(link(t, pod, wiring.Device)))
	}, "msg=repaired", nil},
	{"somebody disables the bridge port", func(t *testing.T, pod *podnet.Pod) {
		setPortState(t, pod, 0)
	}, "msg=repaired", nil},
	{"somebody moves the routing rule", func(t *testing.T, pod *podnet.Pod) {
		handle := pod.Pod.Netlink()
		rules, err := handle.RuleList(netlink.FAMILY_V4)
		must(t, err)
		for _, rule := range rules {
			if rule.Priority == 170 {
				moved := rule
				moved.Priority = 40000
				must(t, handle.RuleAdd(&moved))
				must(t, handle.RuleDel(&rule))
			}
		}
	}, "msg=repaired", nil},
	{"somebody changes the way back", func(t *testing.T, pod *podnet.Pod) {
		must(t, pod.Pod.Netlink().RouteReplace(&netlink.Route{
			LinkIndex: link(t, pod, wiring.Device).Attrs().Index, Table: 0xa9fea9fd, Scope: netlink.SCOPE_LINK,
			Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		}))
	}, "msg=repaired", nil},
	{"somebody deletes the gateway's neighbour entry", func(t *testing.T, pod *podnet.Pod) { deleteGateway(t, pod, wiring.Gateway) }, "msg=repaired", nil},
	{"somebody deletes the IPv6 gateway's neighbour entry", func(t *testing.T, pod *podnet.Pod) { deleteGateway(t, pod, wiring.GatewayIPv6) }, "msg=repaired", nil},
	{"somebody adds an address", func(t *testing.T, pod *podnet.Pod) {
		address, err := netlink.ParseAddr("192.0.2.1/32")
		must(t, err)
		must(t, pod.Pod.Netlink().AddrAdd(link(t, pod, wiring.Device), address))
	}, "msg=repaired", nil},
	{"tap unplugged and plugged again", func(t *testing.T, pod *podnet.Pod) {
		must(t, pod.UnplugTap())
	}, "nobody to serve yet", (*podnet.Pod).PlugTap},
	{"bridge deleted and made anew", func(t *testing.T, pod *podnet.Pod) {
		must(t, pod.RemoveBridge())
	}, "nobody to serve yet", (*podnet.Pod).RestoreBridge},
	{"guest restarted", func(t *testing.T, pod *podnet.Pod) {
		must(t, pod.StopGuest())
		must(t, pod.StartGuest())
	}, "", nil},
}

// Whatever happens to the wiring, the event alone brings it back.
func TestWiringHeals(t *testing.T) {
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge} {
		for _, accident := range accidents {
			t.Run(fmt.Sprintf("%s/%s", binding, accident.name), func(t *testing.T) {
				t.Parallel()
				options := podnet.Options{Binding: binding}
				pod, p := servedPod(t, options)
				before := snapshot(t, pod)
				accident.happen(t, pod)
				if accident.says != "" {
					p.waitForEither(t, accident.says, "msg=wired") // where it saw a state between
				}
				if accident.mend != nil {
					must(t, accident.mend(pod))
					p.waitFor(t, "msg=wired")
				}
				// A listener stays bound to the interface that it was
				// bound to: imds-server follows by itself, its
				// stand-in here is started anew.
				if link(t, pod, wiring.Device).Attrs().Index != before.deviceIndex {
					serve(t, pod)
				}
				mustServe(t, pod, guestAddress(binding))
				p.awaitState(t, pod, before, accident.name)
			})
		}
	}
}

// Killed at any moment and started again, imds-init finds its work done, and
// doubles nothing.
func TestKilledAndStartedAgain(t *testing.T) {
	for _, binding := range []podnet.Binding{podnet.Masquerade, podnet.Bridge} {
		t.Run(string(binding), func(t *testing.T) {
			pod, p := servedPod(t, podnet.Options{Binding: binding})
			before := snapshot(t, pod)
			for range 5 {
				p.kill()
				mustServe(t, pod, guestAddress(binding))
				p = start(t, pod, onThisKernel)
				p.waitFor(t, "msg=wired")
				mustServe(t, pod, guestAddress(binding))
			}
			if after := snapshot(t, pod); !slices.Equal(before.state, after.state) {
				t.Errorf("before %q\nafter %q", before.state, after.state)
			}
			if index := link(t, pod, wiring.Device).Attrs().Index; index != before.deviceIndex {
				t.Errorf("%s was made anew: index %d, before %d", wiring.Device, index, before.deviceIndex)
			}
		})
	}
}

// What is no business of ours is left alone, and causes no work.
func TestUnrelatedChangesCauseNoWork(t *testing.T) {
	pod, p := servedPod(t, podnet.Options{Binding: podnet.Masquerade})
	before := snapshot(t, pod)
	for i := range 50 {
		name := fmt.Sprintf("other%d", i)
		must(t, pod.Pod.Netlink().LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}))
		deleteLink(t, pod, name)
		changeRulesOfOthers(t, pod)
	}
	// The last of the changes has been looked at when one that needs work is
	// repaired.
	deleteAddress(t, pod, netlink.FAMILY_V4)
	p.waitFor(t, "msg=repaired")
	if after := snapshot(t, pod); !slices.Equal(before.state, after.state) {
		t.Errorf("before %q\nafter %q", before.state, after.state)
	}
	if lines := p.said(); len(lines) > 0 {
		t.Errorf("imds-init logged changes that do not concern it: %q", lines)
	}
}

// changeRulesOfOthers writes to nf_tables as KubeVirt does when it makes its
// NAT.
func changeRulesOfOthers(t *testing.T, pod *podnet.Pod) {
	t.Helper()
	nft, err := pod.Pod.Nftables()
	must(t, err)
	table := nft.AddTable(&nftables.Table{Name: "other", Family: nftables.TableFamilyIPv4})
	nft.AddChain(&nftables.Chain{Name: "chain", Table: table})
	must(t, nft.Flush())
	nft.DelTable(table)
	must(t, nft.Flush())
}

// podState is what imds-init has made in a pod: links, addresses, bridge
// ports, forwarding entries, rules. Indexes and counters are not part of it.
type podState struct {
	state       []string
	deviceIndex int
}

func snapshot(t *testing.T, pod *podnet.Pod) podState {
	t.Helper()
	var s podState
	handle := pod.Pod.Netlink()
	links, err := handle.LinkList()
	must(t, err)
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		a := l.Attrs()
		s.add("link %s %s up=%t mtu=%d master=%s", a.Name, l.Type(), a.Flags&net.FlagUp != 0, a.MTU, names[a.MasterIndex])
		if a.Name == wiring.Device {
			s.deviceIndex = a.Index
		}
		family := netlink.FAMILY_V4
		if a.Name == wiring.Device || a.Name == wiring.Port {
			family = netlink.FAMILY_ALL
		}
		addresses, err := handle.AddrList(l, family)
		must(t, err)
		for _, address := range addresses {
			s.add("address %s on %s", address.IPNet, a.Name)
		}
	}
	if device, err := handle.LinkByName(wiring.Device); err == nil {
		routes, err := handle.RouteList(device, netlink.FAMILY_V6)
		must(t, err)
		for _, route := range routes {
			s.add("route to %s by %s", route.Dst, wiring.Device)
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			entries, err := handle.NeighList(device.Attrs().Index, family)
			must(t, err)
			for _, entry := range entries {
				if entry.State == netlink.NUD_PERMANENT {
					s.add("neighbour %s at %s", entry.IP, entry.HardwareAddr)
				}
			}
		}
	}
	policies, err := handle.RuleList(netlink.FAMILY_V4)
	must(t, err)
	for _, policy := range policies {
		s.add("rule %d from %v table %d", policy.Priority, policy.Src, policy.Table)
	}
	nft, err := pod.Pod.Nftables()
	must(t, err)
	chains, err := nft.ListChains()
	must(t, err)
	for _, chain := range chains {
		if chain.Table.Name != "imds" {
			continue
		}
		rules, err := nft.GetRules(chain.Table, chain)
		must(t, err)
		s.add("rules %d %s: %d", chain.Table.Family, chain.Name, len(rules))
	}
	slices.Sort(s.state)
	return s
}

func (s *podState) add(format string, values ...any) {
	s.state = append(s.state, fmt.Sprintf(format, values...))
}

func link(t *testing.T, pod *podnet.Pod, name string) netlink.Link {
	t.Helper()
	l, err := pod.Pod.Netlink().LinkByName(name)
	must(t, err)
	return l
}

func deleteLink(t *testing.T, pod *podnet.Pod, name string) {
	t.Helper()
	must(t, pod.Pod.Netlink().LinkDel(link(t, pod, name)))
}

func deleteAddress(t *testing.T, pod *podnet.Pod, family int) {
	t.Helper()
	device := link(t, pod, wiring.Device)
	addresses, err := pod.Pod.Netlink().AddrList(device, family)
	must(t, err)
	for _, address := range addresses {
		must(t, pod.Pod.Netlink().AddrDel(device, &address))
	}
}

func deleteTable(t *testing.T, pod *podnet.Pod, family nftables.TableFamily) {
	t.Helper()
	nft, err := pod.Pod.Nftables()
	must(t, err)
	nft.DelTable(&nftables.Table{Name: "imds", Family: family})
	must(t, nft.Flush())
}

// setPortState sets the state of the endpoint's bridge port, as `bridge link set` does.
func setPortState(t *testing.T, pod *podnet.Pod, state uint8) {
	t.Helper()
	request := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	message := nl.NewIfInfomsg(unix.AF_BRIDGE)
	message.Index = int32(link(t, pod, wiring.Port).Attrs().Index)
	request.AddData(message)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(1, nl.Uint8Attr(state)) // IFLA_BRPORT_STATE
	request.AddData(info)
	must(t, pod.Pod.Do(func() error {
		_, err := request.Execute(unix.NETLINK_ROUTE, 0)
		return err
	}))
}

// inPod runs a program in the pod's network namespace, such as nft, whose syntax says
// best what somebody does.
func inPod(t *testing.T, pod *podnet.Pod, program string, args ...string) string {
	t.Helper()
	requireProgram(t, program)
	var output bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &output, &output
	must(t, pod.Pod.Start(cmd))
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, &output)
	}
	return output.String()
}

// requireProgram skips where the program is not there, or fails if CI=true.
func requireProgram(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	why := program + " is not installed: on Debian apt-get install nftables"
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func deleteGateway(t *testing.T, pod *podnet.Pod, gateway netip.Addr) {
	t.Helper()
	must(t, pod.Pod.Netlink().NeighDel(&netlink.Neigh{LinkIndex: link(t, pod, wiring.Device).Attrs().Index, IP: gateway.AsSlice()}))
}
