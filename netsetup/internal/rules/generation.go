package rules

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// generation asks the kernel for the number of changes made to nf_tables in
// this network namespace (NFT_MSG_GETGEN). It is never 0.
func generation() (uint32, error) {
	answers, err := ask(unix.NFNL_SUBSYS_NFTABLES, unix.NFT_MSG_GETGEN, unix.NFT_MSG_NEWGEN)
	if err != nil {
		return 0, fmt.Errorf("generation of nf_tables: %w", err)
	}
	for _, answer := range answers {
		attrs, err := nl.ParseRouteAttr(answer[nl.SizeofNfgenmsg:])
		if err != nil {
			return 0, fmt.Errorf("generation of nf_tables: %w", err)
		}
		for _, attr := range attrs {
			if attr.Attr.Type == unix.NFTA_GEN_ID && len(attr.Value) == 4 {
				return binary.BigEndian.Uint32(attr.Value), nil
			}
		}
	}
	return 0, fmt.Errorf("generation of nf_tables: the kernel's answer holds none")
}

// ask asks a subsystem of nfnetlink one question.
func ask(subsystem, question, answer int) ([][]byte, error) {
	req := nl.NewNetlinkRequest(subsystem<<8|question, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: unix.NFNETLINK_V0})
	answers, err := req.Execute(unix.NETLINK_NETFILTER, uint16(subsystem<<8|answer))
	// So answers a kernel that has nfnetlink without the subsystem
	// (nfnetlink_rcv_msg in net/netfilter/nfnetlink.c).
	if errors.Is(err, unix.EINVAL) {
		err = unix.EOPNOTSUPP
	}
	return answers, err
}
