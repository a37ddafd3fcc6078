// Package rules keeps the nf_tables rules that let a guest reach the metadata
// endpoint, and keep everybody else away from it. Its functions act in the network
// namespace of the calling thread.
package rules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// Table is our tables in a network namespace. The zero value knows nothing of what is
// there. It is not safe for concurrent use.
type Table struct {
	Node Node // what the kernel can do

	base    installed // what stands before the endpoint does
	devices installed // what hangs on its interfaces
	sockets sockets
}

// Release closes what was opened since it was called last. It may take some ten
// milliseconds, so that who is in a hurry calls it last.
func (t *Table) Release() { t.sockets.close() }

// installed is a set of chains that was installed, and what the kernel told of it
// right after: when it tells something else, somebody has changed it.
type installed struct {
	chains     []chain
	state      []string
	generation uint32 // of nf_tables when the state was read, 0 for unknown
}

// Install makes the rules those of the wiring, in one transaction, and says whether
// it had to change anything. They stand before the endpoint does.
func (t *Table) Install(w wiring.Wiring) (changed bool, err error) {
	return t.base.install(&t.sockets, ruleset(w, t.Node), mappings(w), families(w, t.Node))
}

// InstallDevices does the same for the rules that hang on the endpoint's interfaces,
// which have to be there; port is the interface index of its port.
func (t *Table) InstallDevices(w wiring.Wiring, port int) (changed bool, err error) {
	if !t.Node.Refuses && !t.Node.Leads {
		return false, nil
	}
	return t.devices.install(&t.sockets, devices(w, t.Node, port), deviceMappings(w, t.Node), []byte{familyNetdev})
}

// install compares and replaces. The kernel counts the changes to nf_tables in the
// namespace: as long as the count is the same nobody has touched the rules.
func (i *installed) install(s *sockets, chains []chain, maps []mapping, families []byte) (changed bool, err error) {
	now, err := s.generation()
	if err != nil {
		return false, err
	}
	if i.generation != 0 && sameChains(i.chains, chains) {
		if now == i.generation {
			return false, nil
		}
		state, at, err := s.readState(families)
		if err == nil && slices.Equal(state, i.state) {
			i.generation = at
			return false, nil
		}
	}
	*i = installed{}
	for range attemptsBesideOthers {
		state, was, err := s.readState(families)
		if err != nil {
			return changed, err
		}
		if len(chains) == 0 && len(state) == 0 {
			i.chains, i.state, i.generation = nil, nil, was
			return changed, nil
		}
		// The maps stay, so that no answer is lost. What does not fit to what is there is
		// replaced whole.
		if len(chains) == 0 || change(chains, maps, families, state).commit(s) != nil {
			if err := replacement(chains, maps, families).commit(s); err != nil {
				return changed, err
			}
		}
		changed = true
		state, now, err = s.readState(families)
		if err != nil {
			return true, err
		}
		// Where somebody has changed something meanwhile, what was read is not surely
		// what was installed.
		if now == was+1 {
			i.chains, i.state, i.generation = chains, state, now
			break
		}
	}
	return true, nil
}

// attemptsBesideOthers bounds how often the rules are put anew while others change
// nf_tables. The event of the last change brings us back.
const attemptsBesideOthers = 5

// sameChains says whether two sets of chains have the same rules.
func sameChains(a, b []chain) bool { return reflect.DeepEqual(a, b) }

// replacement puts our tables anew. A table is added first because only one that
// exists can be deleted.
func replacement(chains []chain, maps []mapping, families []byte) *batch {
	b := &batch{table: tableName}
	for _, family := range families {
		b.addTable(family)
		b.deleteTable(family)
	}
	b.fill(chains, maps, families)
	return b
}

// change puts our chains anew, and keeps the maps that are there.
func change(chains []chain, maps []mapping, families []byte, state []string) *batch {
	b := &batch{table: tableName}
	for _, family := range families {
		b.addTable(family)
		b.deleteChains(family, chainsIn(state, family))
	}
	b.fill(chains, maps, families)
	return b
}

func (b *batch) fill(chains []chain, maps []mapping, families []byte) {
	for _, family := range families {
		has := func(f byte) bool { return f == family }
		if !slices.ContainsFunc(chains, func(c chain) bool { return has(c.family) }) {
			continue
		}
		b.addTable(family)
		for _, m := range maps {
			if has(m.family) {
				b.addMapping(m)
			}
		}
		for _, c := range chains {
			if has(c.family) {
				b.addChain(c)
			}
		}
	}
}

// chainsIn returns the names of a family's chains in a state.
func chainsIn(state []string, family byte) (names []string) {
	for _, line := range state {
		if rest, ok := strings.CutPrefix(line, fmt.Sprintf("%d chain ", family)); ok {
			name, _, _ := strings.Cut(rest, " ")
			names = append(names, name)
		}
	}
	return names
}

// fields are what is compared of each kind of object, in the order in which the kernel
// lists them: what nobody but a writer changes. A handle is never given twice in a
// table's life, and a rule's expressions never change under the same handle.
var fields = []struct {
	what           string
	question, kind int
	table, name    uint16
	others         []uint16
}{
	{"table", unix.NFT_MSG_GETTABLE, unix.NFT_MSG_NEWTABLE, unix.NFTA_TABLE_NAME, unix.NFTA_TABLE_NAME, []uint16{unix.NFTA_TABLE_FLAGS, tableHandle}},
	{"chain", unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_NEWCHAIN, unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, []uint16{unix.NFTA_CHAIN_HANDLE, unix.NFTA_CHAIN_HOOK, unix.NFTA_CHAIN_POLICY}},
	{"map", unix.NFT_MSG_GETSET, unix.NFT_MSG_NEWSET, unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, []uint16{unix.NFTA_SET_FLAGS, setHandle}},
	{"rule", unix.NFT_MSG_GETRULE, unix.NFT_MSG_NEWRULE, unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, []uint16{unix.NFTA_RULE_HANDLE}},
}

// NFTA_TABLE_HANDLE and NFTA_SET_HANDLE of include/uapi/linux/netfilter/nf_tables.h.
const (
	tableHandle = 4
	setHandle   = 16
)

// readState lists our tables of the families with all that is in them, and the
// generation of nf_tables that the list is of.
func (s *sockets) readState(families []byte) (state []string, at uint32, err error) {
	for {
		before, err := s.generation()
		if err != nil {
			return nil, 0, err
		}
		if state, err = s.listState(families); err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
			return nil, 0, err
		}
		// What was read while somebody changed nf_tables may lack a rule.
		now, genErr := s.generation()
		if genErr != nil || err == nil && now == before {
			return state, now, genErr
		}
	}
}

func (s *sockets) listState(families []byte) (state []string, err error) {
	for _, f := range fields {
		for _, family := range families {
			objects, err := s.ask(f.question, f.kind, family, unix.NLM_F_DUMP)
			if err != nil {
				return nil, err
			}
			for _, object := range objects {
				attributes, err := nl.ParseRouteAttrAsMap(object[nl.SizeofNfgenmsg:])
				if err != nil {
					return nil, fmt.Errorf("%s of nf_tables: %w", f.what, err)
				}
				if nl.BytesToString(attributes[f.table].Value) != tableName {
					continue
				}
				line := fmt.Sprintf("%d %s %s", family, f.what, nl.BytesToString(attributes[f.name].Value))
				for _, kind := range f.others {
					line += fmt.Sprintf(" %x", attributes[kind].Value)
				}
				state = append(state, line)
			}
		}
	}
	return state, nil
}

// generation asks the kernel for the number of changes made to nf_tables in this
// network namespace. It is never 0.
func (s *sockets) generation() (uint32, error) {
	answers, err := s.ask(unix.NFT_MSG_GETGEN, unix.NFT_MSG_NEWGEN, unix.AF_UNSPEC, 0)
	if err != nil {
		return 0, err
	}
	for _, answer := range answers {
		attributes, err := nl.ParseRouteAttrAsMap(answer[nl.SizeofNfgenmsg:])
		if id := attributes[unix.NFTA_GEN_ID].Value; err == nil && len(id) == 4 {
			return binary.BigEndian.Uint32(id), nil
		}
	}
	return 0, errors.New("generation of nf_tables: the kernel's answer holds none")
}

// ask asks nf_tables one question.
func (s *sockets) ask(question, answer int, family byte, flags int) ([][]byte, error) {
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|question, flags)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: unix.NFNETLINK_V0})
	var err error
	if request.Sockets, err = s.forQuestions(); err != nil {
		return nil, fmt.Errorf("nf_tables: %w", err)
	}
	answers, err := request.Execute(unix.NETLINK_NETFILTER, uint16(unix.NFNL_SUBSYS_NFTABLES<<8|answer))
	if err != nil {
		return nil, fmt.Errorf("nf_tables: %w", err)
	}
	return answers, nil
}
