package rules

import "github.com/google/nftables"

// guestPort is the port that every guest asks at.
const guestPort = 80

// redirection is the chain for a VM whose pod network is bound by passt: a
// process of the pod asks for the guest, and has the pod's port 80 for the VM's
// own. Nothing passes the output hook but the pod's own packets, so nobody else
// is redirected. The address stays: nft's "redirect" would make it 127.0.0.1,
// where the server does not listen.
func redirection(port uint16) chain {
	return chain{nftables.TableFamilyIPv4, nftables.ChainTypeNAT, "redirection", nftables.ChainHookOutput, nftables.ChainPriorityRef(beforeMeshes), []rule{
		{"the guest's questions go to the server's port", []part{ipTarget(address), tcpTarget(guestPort), toPort(port)}},
	}}
}

// beforeMeshes runs before the destination NAT of a service mesh
// (NF_IP_PRI_NAT_DST in include/uapi/linux/netfilter_ipv4.h), which would send
// the guest's questions to its proxy. The first chain that translates a
// connection is the last that is asked.
const beforeMeshes nftables.ChainPriority = -101

// onlyThePodAsks holds where questions are redirected: they come from inside the
// pod and from nowhere else, not even by the endpoint's own device, and neither
// to the guest's port nor to the server's.
var onlyThePodAsks = rule{"only the pod itself asks", []part{notIif("lo"), ipTarget(address), drop()}}
