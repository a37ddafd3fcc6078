package guests

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/vmtest"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// changes tells when something in a pod's network has changed.
type changes struct {
	happened chan struct{}
	sockets  []*os.File

	mu    sync.Mutex
	first time.Time // of the changes since mark
}

// mark has the next change be the first.
func (c *changes) mark() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first = time.Time{}
}

// since is when the kernel told of the first change since mark, or else a time that is given.
func (c *changes) since(otherwise time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first.IsZero() {
		return otherwise
	}
	return c.first
}

// watched are the kernel's notifications that concern a state.
var watched = []struct {
	protocol int
	groups   uint32
}{
	{unix.NETLINK_ROUTE, 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_NEIGH-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) |
		1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV4_RULE-1) |
		1<<(unix.RTNLGRP_IPV6_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_RULE-1)},
	{unix.NETLINK_NETFILTER, 1 << (unix.NFNLGRP_NFTABLES - 1)},
}

// watchChanges tells of all changes from now on.
func watchChanges(pod *podnet.Namespace) (*changes, error) {
	c := &changes{happened: make(chan struct{}, 1)}
	for _, w := range watched {
		err := pod.Do(func() error {
			fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, w.protocol)
			if err != nil {
				return err
			}
			c.sockets = append(c.sockets, os.NewFile(uintptr(fd), "changes"))
			return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: w.groups})
		})
		if err != nil {
			c.close()
			return nil, err
		}
	}
	for _, socket := range c.sockets {
		go c.forward(socket)
	}
	return c, nil
}

func (c *changes) close() {
	for _, socket := range c.sockets {
		socket.Close()
	}
}

// forward looks at nothing but that there is a message; where some were lost (ENOBUFS), there was a change.
func (c *changes) forward(socket *os.File) {
	message := make([]byte, unix.NLMSG_HDRLEN)
	for {
		if _, err := socket.Read(message); errors.Is(err, os.ErrClosed) {
			return
		}
		c.mu.Lock()
		if c.first.IsZero() {
			c.first = time.Now()
		}
		c.mu.Unlock()
		select {
		case c.happened <- struct{}{}:
		default: // nobody has looked yet
		}
	}
}

// state is all that there is in a pod's network, a line each. What a thing gets anew when it is made anew,
// such as an index, is not part of it.
type state struct{ lines []string }

// readState reads it. It fails where something goes away while it reads.
func readState(pod *podnet.Namespace) (*state, error) {
	var s state
	for _, read := range []func(*podnet.Namespace) error{s.readLinks, s.readRoutes, s.readRules, s.readTables} {
		if err := read(pod); err != nil {
			return nil, err
		}
	}
	return &s, nil
}

func (s *state) add(format string, values ...any) {
	s.lines = append(s.lines, fmt.Sprintf(format, values...))
}

// difference says which lines are missing after something, and which are more: none where all is as it was.
func (s *state) difference(after *state) []string {
	more := map[string]int{}
	for _, line := range after.lines {
		more[line]++
	}
	for _, line := range s.lines {
		more[line]--
	}
	var lines []string
	for _, line := range slices.Sorted(maps.Keys(more)) {
		if more[line] < 0 {
			lines = append(lines, "missing: "+line)
		} else if more[line] > 0 {
			lines = append(lines, "more: "+line)
		}
	}
	return lines
}

// withoutProject is the state but for what is the project's own: its links, its table and all that names its address,
// and which ports are isolated.
func (s *state) withoutProject() *state {
	return &state{slices.DeleteFunc(slices.Clone(s.lines), func(line string) bool {
		return strings.Contains(line, endpointDevice) || strings.Contains(line, podnet.MetadataAddr.String()) ||
			strings.Contains(line, podnet.GuestsMAC.String()) || strings.Contains(line, "table imds,") || strings.HasPrefix(line, "isolated")
	})}
}

func (s *state) readLinks(pod *podnet.Namespace) error {
	links, err := pod.Netlink().LinkList()
	if err != nil {
		return err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		a := l.Attrs()
		if a.MasterIndex != 0 {
			info, err := pod.Netlink().LinkGetProtinfo(l)
			if err != nil {
				return err
			}
			s.add("isolated %t, link %s", info.Isolated, a.Name)
		}
		s.add("link %s, %s, up %t, MTU %d, port of %q", a.Name, l.Type(), a.Flags&net.FlagUp != 0, a.MTU, names[a.MasterIndex])
		family := netlink.FAMILY_V4
		if a.Name == endpointDevice || a.Name == endpointPort {
			family = netlink.FAMILY_ALL
			s.add("MAC %s of %s", a.HardwareAddr, a.Name)
		}
		addresses, err := pod.Netlink().AddrList(l, family)
		if err != nil {
			return err
		}
		for _, address := range addresses {
			s.add("address %s, scope %d, on %s", address.IPNet, address.Scope, a.Name)
		}
		if err := s.readPinned(pod, l); err != nil {
			return err
		}
	}
	return nil
}

// readPinned reads the entries that somebody has made in the bridge's forwarding table.
func (s *state) readPinned(pod *podnet.Namespace, l netlink.Link) error {
	entries, err := pod.Netlink().NeighList(l.Attrs().Index, unix.AF_BRIDGE)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.State&netlink.NUD_NOARP != 0 && e.MasterIndex != 0 {
			s.add("forwarding to %s pinned to %s", e.HardwareAddr, l.Attrs().Name)
		}
	}
	return nil
}

// readRoutes reads all routes of IPv4, and those of IPv6 by our links: others have them from their MACs.
func (s *state) readRoutes(pod *podnet.Namespace) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := pod.Netlink().RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range routes {
			link, err := pod.Netlink().LinkByIndex(r.LinkIndex)
			if err != nil {
				return err
			}
			name := link.Attrs().Name
			if family == netlink.FAMILY_V4 || name == endpointDevice || name == endpointPort {
				s.add("route to %v via %v by %s from %v, table %d, type %d, scope %d", r.Dst, r.Gw, name, r.Src, r.Table, r.Type, r.Scope)
			}
		}
	}
	return nil
}

func (s *state) readRules(pod *podnet.Namespace) error {
	rules, err := pod.Netlink().RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, r := range rules {
		s.add("rule %d from %v to table %d", r.Priority, r.Src, r.Table)
	}
	return nil
}

// readTables reads the rules of nf_tables by the comments that ours have, and the number of their expressions.
func (s *state) readTables(pod *podnet.Namespace) error {
	nft, err := pod.Nftables()
	if err != nil {
		return err
	}
	chains, err := nft.ListChains()
	if err != nil {
		return err
	}
	for _, chain := range chains {
		rules, err := nft.GetRules(chain.Table, chain)
		if err != nil {
			return err
		}
		s.add("chain %s of table %s, family %d, hook %s", chain.Name, chain.Table.Name, chain.Table.Family, hook(chain))
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			s.add("rule %q, %d expressions, in chain %s of table %s, family %d",
				comment, len(r.Exprs), chain.Name, chain.Table.Name, chain.Table.Family)
		}
	}
	return nil
}

func hook(chain *nftables.Chain) string {
	if chain.Hooknum == nil || chain.Priority == nil {
		return "none"
	}
	return fmt.Sprintf("%d at %d", *chain.Hooknum, *chain.Priority)
}

// settleLimit is how long a sidecar may hold what it is about to let go: the connections whose device was deleted
// end by the server's time limits.
const settleLimit = 15 * time.Second

func (v *accidentVM) sidecars() []*vmtest.Sidecar { return []*vmtest.Sidecar{v.Init, v.Server} }

// descriptors counts the open files of the sidecars.
func (v *accidentVM) descriptors() map[string]int {
	open := map[string]int{}
	for _, c := range v.sidecars() {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.PID()))
		check(v.t, err)
		open[c.Name] = len(entries)
	}
	return open
}

// leaks says what there is now that was not there before the first accident, or is missing.
func (v *accidentVM) leaks() []string {
	var leaks []string
	now, err := readState(v.Net.Pod)
	check(v.t, err)
	leaks = append(leaks, v.before.difference(now)...)
	for name, more := range v.awaitDescriptors() {
		leaks = append(leaks, fmt.Sprintf("%s has %d open files more than the %d of before", name, more, v.held[name]))
	}
	return leaks
}

// awaitDescriptors waits until no sidecar has more open files than it had before, and returns how many more there
// are where that does not happen.
func (v *accidentVM) awaitDescriptors() map[string]int {
	for deadline := time.Now().Add(settleLimit); ; {
		more := map[string]int{}
		for name, count := range v.descriptors() {
			if count > v.held[name] {
				more[name] = count - v.held[name]
			}
		}
		if len(more) == 0 || time.Now().After(deadline) {
			return more
		}
		time.Sleep(20 * time.Millisecond) // nothing tells that another process has closed a file
	}
}

// memoryGrowth is how much more memory than before a sidecar may have after a hundred accidents, in KiB: less than
// 100 KiB for each.
const memoryGrowth = 8 << 10

// size is what a process has of the machine, by /proc/PID/status.
type size struct{ memory, threads int } // memory in KiB

// sizes reads those of the sidecars.
func (v *accidentVM) sizes() map[string]size {
	all := map[string]size{}
	for _, c := range v.sidecars() {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID()))
		check(v.t, err)
		var of size
		for line := range strings.Lines(string(status)) {
			fmt.Sscanf(line, "VmRSS: %d", &of.memory)
			fmt.Sscanf(line, "Threads: %d", &of.threads)
		}
		if of.memory == 0 || of.threads == 0 {
			v.t.Fatalf("%s: no VmRSS or no Threads in %s", c.Name, status)
		}
		all[c.Name] = of
	}
	return all
}

// growth says which sidecars have grown too much, and notes how much all have.
func (m *measured) growth(before, after map[string]size) (leaks []string) {
	for name, now := range after {
		then := before[name]
		m.notes = append(m.notes, fmt.Sprintf("%s: memory %d KiB, before %d; threads %d, before %d",
			name, now.memory, then.memory, now.threads, then.threads))
		if now.memory > then.memory+memoryGrowth {
			leaks = append(leaks, fmt.Sprintf("%s has %d KiB of memory, before the accidents %d", name, now.memory, then.memory))
		}
	}
	return leaks
}

// goroutineLeaks says which sidecars have more goroutines than one that has just been started, and notes how many.
// What they have, Go writes to the log of a process that SIGQUIT ends: the product needs no port for that.
func (v *accidentVM) goroutineLeaks(m *measured) []string {
	var leaks []string
	for _, c := range v.sidecars() {
		old := v.quit(c)
		v.startAnew(c)
		young := v.quit(c)
		v.startAnew(c)
		m.notes = append(m.notes, fmt.Sprintf("%s: %d goroutines, just started %d", c.Name, old, young))
		if old == 0 || young == 0 {
			leaks = append(leaks, fmt.Sprintf("%s tells no goroutine at SIGQUIT", c.Name))
		}
		if old > young {
			leaks = append(leaks, fmt.Sprintf("%s has %d goroutines more than the %d of one just started", c.Name, old-young, young))
		}
	}
	return leaks
}

// created is what Go writes of a goroutine's origin. Those of the runtime itself, such as the garbage collector's,
// come when they are needed and stay.
var created = regexp.MustCompile(`(?m)^created by (\S+)`)

// quit ends a sidecar and returns how many goroutines it had started.
func (v *accidentVM) quit(c *vmtest.Sidecar) (n int) {
	from := len(c.Log())
	c.Quit()
	for _, origin := range created.FindAllStringSubmatch(c.Log()[from:], -1) {
		if !strings.HasPrefix(origin[1], "runtime.") {
			n++
		}
	}
	return n
}

// startAnew starts a sidecar and waits until it does its work: then it has all the goroutines that it keeps.
func (v *accidentVM) startAnew(c *vmtest.Sidecar) {
	ctx, cancel := context.WithTimeout(v.t.Context(), patience)
	defer cancel()
	from := len(c.Log())
	check(v.t, c.Start())
	if c == v.Init {
		check(v.t, c.AwaitLogAfter(ctx, from, "msg=wired"))
	} else {
		check(v.t, v.awaitListening(ctx, from))
	}
	v.AwaitAnswers(3)
}
