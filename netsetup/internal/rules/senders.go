package rules

import (
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The kernel keeps a neighbour for each address that it answers, or hears of by
// ARP or neighbour discovery, and it keeps those of all network namespaces in one
// table: at 1,024 (gc_thresh3) no pod of the node gets a new one. So the endpoint
// hears sendersLimit addresses of a VM only in each family, and each until it has
// been silent for sendersMemory. As long as the kernel remembers those of before,
// about a minute too (gc_stale_time), a hostile guest has some more.
//
// A guest has one address, and some more where containers in it have their own
// on its network; over IPv6, where only link-local ones are heard, hardly that.
const (
	sendersLimit  = 16
	sendersMemory = time.Minute
)

// The names of the sets of the addresses that are heard, which are in our table
// of the bridge family.
const (
	sendersIPv4 = "senders-ipv4"
	sendersIPv6 = "senders-ipv6"
)

// stageSenders queues the sets, still empty: the packets of the guests fill them.
func stageSenders(conn *nftables.Conn, bridge *nftables.Table) error {
	for name, address := range map[string]nftables.SetDatatype{sendersIPv4: nftables.TypeIPAddr, sendersIPv6: nftables.TypeIP6Addr} {
		err := conn.AddSet(&nftables.Set{
			Table: bridge, Name: name, KeyType: address,
			Dynamic: true, Size: sendersLimit, HasTimeout: true, Timeout: sendersMemory,
		}, nil)
		if err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// Where a packet to the endpoint has the address that it may make a neighbour of
// the pod's: the answer goes there. (A source route would send it elsewhere, so
// IPv4 options are refused.) A neighbour advertisement is not answered, but where
// accept_untracked_na is set it makes one of whom it is about.
var (
	ipSenderKnown   = known(sendersIPv4, ipSourceAt, 4)
	arpSenderKnown  = known(sendersIPv4, arpSenderAt, 4)
	ip6SenderKnown  = known(sendersIPv6, ip6SourceAt, 16)
	advertisedKnown = known(sendersIPv6, discoveryTargetAt, 16)
)

// known matches an address of the network header that is in a set of senders or
// still finds room there. Its time begins anew with each packet: a flood takes
// the room of those that are silent, and of nobody who asks.
func known(set string, offset, length uint32) part {
	return part{
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Dynset{SrcRegKey: register, SetName: set, Operation: unix.NFT_DYNSET_OP_UPDATE},
	}
}
