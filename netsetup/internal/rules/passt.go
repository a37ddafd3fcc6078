package rules

import (
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// beforeMeshes runs before the destination NAT of a service mesh
// (NF_IP_PRI_NAT_DST in include/uapi/linux/netfilter_ipv4.h), which would send the
// guest's questions to its proxy. The first chain that translates a connection is
// the last that is asked.
const beforeMeshes = -101

// passt is the rules for a VM whose pod network is bound by passt: a process of the
// pod asks for the guest, over IPv4, and has the pod's port 80 for the VM's own. So
// questions come from inside the pod and from nowhere else, not even by the
// endpoint's own device. Nothing passes the output hook but the pod's own packets.
// They are tracked, since a redirection is by connection, and the address stays:
// nft's "redirect" would make it 127.0.0.1, where the server does not listen.
func passt(w wiring.Wiring) []chain {
	return []chain{
		{familyIPv4, "filter", "prerouting", unix.NF_INET_PRE_ROUTING, beforeTracking, "", []rule{
			// Frames on a bridge of another network pass here too.
			to("drop questions from outside the pod", notIif("lo"), notIifKind("bridge"), ipTarget(address), drop),
			to("drop what the endpoint gets for other addresses", iif(wiring.Device), drop),
		}},
		{familyIPv4, "filter", "input", unix.NF_INET_LOCAL_IN, filter, "", []rule{
			to("drop questions by a bridge", notIif("lo"), ipTarget(address), drop),
			// Here the sender hears of it; what is refused on its way out fails for the
			// sender as if it might not send.
			to("refuse UDP", ipTarget(address), layer4(expr.CmpOpEq, unix.IPPROTO_UDP), refuseByICMP),
		}},
		{familyIPv4, "filter", "forward", unix.NF_INET_FORWARD, filter, "", throughPod},
		{familyIPv4, "filter", "output", unix.NF_INET_LOCAL_OUT, beforeTracking, "", slices.Concat(refusePasst, outOfPod)},
		{familyIPv4, "nat", "redirection", unix.NF_INET_LOCAL_OUT, beforeMeshes, "", []rule{
			to("redirect the guest's questions to the server's port", ipTarget(address), tcpTo(guestPort), toPort(w.RedirectPort)),
		}},
		{familyARP, "filter", "input", arpInput, filter, "", arpIntoPod},
		{familyARP, "filter", "output", arpOutput, filter, "", arpOutOfPod},
	}
}

// refusePasst refuses what is not ours to answer: listeners of the pod that the
// guest could not reach but by our address.
var refusePasst = []rule{
	to("refuse connections to other ports", ipTarget(address), tcpOpens, tcpNotTo(guestPort), refuseByReset),
}
