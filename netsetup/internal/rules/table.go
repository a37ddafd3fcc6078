// Package rules keeps the nf_tables rules that let a guest reach the metadata
// endpoint, and keep everybody else away from it.
package rules

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// ErrUnsupported means that the kernel lacks a part of nf_tables without which
// the endpoint cannot be kept from strangers.
var ErrUnsupported = errors.New("the node's kernel lacks nf_tables of the bridge, ip, ip6 or arp family or its dynamic sets, so nobody could be kept from the endpoint; " +
	"load or enable nf_tables with CONFIG_NF_TABLES_BRIDGE, _IPV4, _IPV6 and _ARP on the node, and CONFIG_NFT_NAT for VMs with the passt binding")

// Table is the set of our tables in the network namespace of the process. The
// zero value knows nothing of what is there yet. It is not safe for concurrent
// use.
type Table struct {
	installed  wiring.Wiring
	handles    []uint64 // of the installed rules, in order
	generation uint32   // of nf_tables when the handles were read, 0 for unknown
}

// Install makes the rules those of the wiring, in one transaction, and says
// whether it had to change anything. The kernel counts the changes to
// nf_tables in the namespace: as long as the count is the same nobody has
// touched the rules, and when it is not, their handles tell.
//
// The count is asked for first also because a kernel without nf_tables answers
// a whole transaction with a single error, and the library would wait for ever
// for the answers to its parts.
func (t *Table) Install(w wiring.Wiring) (changed bool, err error) {
	now, err := generation()
	if err != nil {
		return false, explain(err)
	}
	if t.generation != 0 && sameRules(w, t.installed) {
		if now == t.generation {
			return false, nil
		}
		handles, now, err := readHandles(w)
		if err == nil && slices.Equal(handles, t.handles) {
			t.generation = now
			return false, nil
		}
	}
	t.generation = 0
	if err := replace(w); err != nil {
		return false, explain(err)
	}
	return true, explain(t.remember(w))
}

// remember reads back what was installed. Where somebody has touched it
// already it is not remembered, and their event brings us back.
func (t *Table) remember(w wiring.Wiring) error {
	handles, now, err := readHandles(w)
	if err != nil {
		return err
	}
	if len(handles) == count(w) {
		t.installed, t.handles, t.generation = w, handles, now
	}
	return nil
}

// count is the number of rules for a wiring.
func count(w wiring.Wiring) (n int) {
	for _, c := range ruleset(w) {
		n += len(c.rules)
	}
	return n
}

// readHandles returns the handles of the rules in our chains, and the
// generation of nf_tables that they are of. The kernel gives no handle twice in
// a table's life.
func readHandles(w wiring.Wiring) (handles []uint64, now uint32, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, 0, err
	}
	for {
		before, err := generation()
		if err != nil {
			return nil, 0, err
		}
		handles = handles[:0]
		for _, c := range ruleset(w) {
			table := &nftables.Table{Name: tableName, Family: c.family}
			rules, err := conn.GetRules(table, &nftables.Chain{Name: c.name, Table: table})
			if err != nil {
				return nil, 0, err
			}
			for _, r := range rules {
				handles = append(handles, r.Handle)
			}
		}
		// What was read while somebody changed nf_tables may hold a rule
		// twice, or lack one.
		if now, err = generation(); err != nil || now == before {
			return handles, now, err
		}
	}
}

// replace puts our tables anew, in one transaction.
func replace(w wiring.Wiring) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	if err := stage(conn, w); err != nil {
		return err
	}
	return conn.Flush()
}

// stage queues the replacement of our tables. A table is added first because
// only one that exists can be deleted.
func stage(conn *nftables.Conn, w wiring.Wiring) error {
	tables := map[nftables.TableFamily]*nftables.Table{}
	policy := nftables.ChainPolicyAccept
	for _, c := range ruleset(w) {
		table, staged := tables[c.family]
		if !staged {
			table = &nftables.Table{Name: tableName, Family: c.family}
			conn.AddTable(table)
			conn.DelTable(table)
			conn.AddTable(table)
			tables[c.family] = table
			if c.family == nftables.TableFamilyBridge {
				if err := stageSenders(conn, table); err != nil {
					return err
				}
			}
		}
		base := conn.AddChain(&nftables.Chain{
			Name: c.name, Table: table, Type: c.kind,
			Hooknum: c.hook, Priority: c.priority, Policy: &policy,
		})
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{
				Table: table, Chain: base, Exprs: r.expressions(),
				UserData: userdata.AppendString(nil, userdata.TypeComment, r.purpose),
			})
		}
	}
	return nil
}

// sameRules says whether two wirings have the same rules: they depend on the
// port of the redirection, the bridge's name, the guests' taps and on whether
// there is IPv6 only.
func sameRules(a, b wiring.Wiring) bool {
	return a.RedirectPort == b.RedirectPort && a.Bridge.Name == b.Bridge.Name && a.IPv6 == b.IPv6 && slices.Equal(a.Guests, b.Guests)
}

// explain turns the kernel's ways of saying "no such family, hook or
// expression" into ErrUnsupported, with the first of them: the library joins
// one for each rule.
func explain(err error) error {
	if err == nil {
		return nil
	}
	for _, missing := range []error{unix.EAFNOSUPPORT, unix.EOPNOTSUPP, unix.ENOENT, unix.EPROTONOSUPPORT} {
		if errors.Is(err, missing) {
			return fmt.Errorf("%w: %w", ErrUnsupported, missing)
		}
	}
	return fmt.Errorf("nf_tables: %w", err)
}
