package main

import (
	"context"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/e2e/hand"
)

// nat makes the table that nft would make of
//
//	table ip guest {
//		chain postrouting { type nat hook postrouting priority 100; oifname "eth0" masquerade; }
//	}
func nat(_ context.Context, n hand.NAT) (hand.NATed, error) {
	conn, err := nftables.New()
	if err != nil {
		return hand.NATed{}, err
	}
	table := conn.AddTable(&nftables.Table{Name: "guest", Family: nftables.TableFamilyIPv4})
	chain := conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, n.Interface)
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		&expr.Masq{},
	}})
	return hand.NATed{}, conn.Flush()
}
