// Package events tells when something in the pod's network has changed.
package events

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// sources are the kernel's notifications that concern the wiring.
var sources = []struct {
	name     string
	protocol int
	groups   []int
	filter   []unix.SockFilter // nil: all messages
}{
	{"network", unix.NETLINK_ROUTE, []int{unix.RTNLGRP_LINK,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE}, nil},
	{"neighbour", unix.NETLINK_ROUTE, []int{unix.RTNLGRP_NEIGH}, aboutGateways()},
	{"nf_tables", unix.NETLINK_NETFILTER, []int{unix.NFNLGRP_NFTABLES}, nil},
}

// aboutGateways passes the messages about the neighbours that stand for the guests: a
// guest can cause any number of others. A message is a struct nlmsghdr, a struct ndmsg, and
// first the attribute NDA_DST (neigh_fill_info in net/core/neighbour.c).
func aboutGateways() []unix.SockFilter {
	const (
		address = unix.NLMSG_HDRLEN + unix.SizeofNdMsg + unix.SizeofRtAttr
		load    = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		pass    = unix.BPF_RET | unix.BPF_K
	)
	word := func(a netip.Addr, at int) uint32 { return binary.BigEndian.Uint32(a.AsSlice()[at:]) }
	return []unix.SockFilter{
		{Code: load, K: address},
		{Code: equal, K: word(wiring.Gateway, 0), Jt: 3},
		{Code: equal, K: word(wiring.GatewayIPv6, 0), Jf: 3},
		{Code: load, K: address + 12},
		{Code: equal, K: word(wiring.GatewayIPv6, 12), Jf: 1},
		{Code: pass, K: 1 << 16},
		{Code: pass, K: 0},
	}
}

// Watch subscribes to the changes of links, addresses, routes, IPv4 policy rules and
// our gateways' neighbour entries, and of nf_tables, in the network namespace of the calling thread. The
// channel gets a value after each change; several that come close together
// are one value, since whoever reads it looks at all that is there anyway. It
// is subscribed when Watch returns, so that nothing that happens later is
// missed, and it ends with the context.
func Watch(ctx context.Context) (<-chan struct{}, error) {
	var sockets []*os.File
	for _, source := range sources {
		socket, err := subscribe(source.protocol, source.groups, source.filter)
		if err != nil {
			for _, s := range sockets {
				s.Close()
			}
			return nil, fmt.Errorf("subscribe to the kernel's %s events: %w", source.name, err)
		}
		sockets = append(sockets, socket)
	}
	changed := make(chan struct{}, 1)
	for _, socket := range sockets {
		context.AfterFunc(ctx, func() { socket.Close() })
		go forward(ctx, socket, changed)
	}
	return changed, nil
}

// subscribe opens a netlink socket that is a member of the groups. It does not
// block, so that the Go runtime waits for it and a close ends the wait.
func subscribe(protocol int, groups []int, filter []unix.SockFilter) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, err
	}
	socket := os.NewFile(uintptr(fd), "netlink")
	if filter != nil {
		program := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, program); err != nil {
			socket.Close()
			return nil, err
		}
	}
	address := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, group := range groups {
		address.Groups |= 1 << (group - 1)
	}
	if err := unix.Bind(fd, address); err != nil {
		socket.Close()
		return nil, err
	}
	return socket, nil
}

// forward turns messages into values until the context ends, which closes the socket.
// What they say does not matter, so their end may be cut off; nor does it matter when
// some were lost because they came too fast (ENOBUFS). While a value waits to be taken
// no more are read: what changes all day costs no more than is looked at.
func forward(ctx context.Context, socket *os.File, changed chan<- struct{}) {
	raw, err := socket.SyscallConn()
	for err == nil {
		err = raw.Read(takeAll)
		select {
		case changed <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

// takeAll takes the messages that are there, and says whether there were some.
func takeAll(socket uintptr) (some bool) {
	const most = 1000 // where they come as fast as they are taken
	message := make([]byte, unix.NLMSG_HDRLEN)
	for range most {
		if _, err := unix.Read(int(socket), message); err == unix.EAGAIN {
			break
		}
		some = true
	}
	return some
}
