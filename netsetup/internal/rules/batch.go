package rules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// batch is a transaction of nf_tables: all of it takes effect at once, or nothing.
type batch struct {
	table    string // whose it is, in each family
	messages []*nl.NetlinkRequest
	sets     uint32 // how many anonymous sets it makes
	err      error  // the first mistake in what was added
}

// add adds a command about the table in a family.
func (b *batch) add(command, flags int, family byte, attributes ...*nl.RtAttr) {
	message := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|command, flags)
	message.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: unix.NFNETLINK_V0})
	for _, a := range attributes {
		message.AddData(a)
	}
	b.messages = append(b.messages, message)
}

// text is an attribute with a name.
func text(kind int, value string) *nl.RtAttr { return nl.NewRtAttr(kind, nl.ZeroTerminated(value)) }

// nested is an attribute that holds others.
func nested(kind int, attributes ...*nl.RtAttr) *nl.RtAttr {
	outer := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	for _, a := range attributes {
		outer.AddChild(a)
	}
	return outer
}

func (b *batch) addTable(family byte) {
	b.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, family, text(unix.NFTA_TABLE_NAME, b.table), number(unix.NFTA_TABLE_FLAGS, 0))
}

// deleteTable deletes the table of a family with all that is in it, which has to be
// there.
func (b *batch) deleteTable(family byte) {
	b.add(unix.NFT_MSG_DELTABLE, 0, family, text(unix.NFTA_TABLE_NAME, b.table))
}

// deleteChains deletes the chains of a table with their rules, and leaves its maps.
func (b *batch) deleteChains(family byte, names []string) {
	b.add(unix.NFT_MSG_DELRULE, 0, family, text(unix.NFTA_RULE_TABLE, b.table))
	for _, name := range names {
		b.add(unix.NFT_MSG_DELCHAIN, 0, family, text(unix.NFTA_CHAIN_TABLE, b.table), text(unix.NFTA_CHAIN_NAME, name))
	}
}

// addMapping adds a map.
func (b *batch) addMapping(m mapping) {
	const (
		isMap   = 0x8 // NFT_SET_MAP, NFT_SET_TIMEOUT and NFT_SET_EVAL of
		timeout = 0x10
		dynamic = 0x20 // include/uapi/linux/netfilter/nf_tables.h
	)
	flags := uint32(isMap | dynamic)
	attributes := []*nl.RtAttr{
		text(unix.NFTA_SET_TABLE, b.table), text(unix.NFTA_SET_NAME, m.name),
		number(unix.NFTA_SET_ID, b.nextSet()),
		number(unix.NFTA_SET_KEY_TYPE, m.key.number), number(unix.NFTA_SET_KEY_LEN, m.key.length),
		number(unix.NFTA_SET_DATA_TYPE, m.data.number), number(unix.NFTA_SET_DATA_LEN, m.data.length),
		nested(unix.NFTA_SET_DESC, number(unix.NFTA_SET_DESC_SIZE, m.size)),
	}
	if m.timeout > 0 {
		flags |= timeout
		attributes = append(attributes, nl.NewRtAttr(unix.NFTA_SET_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(m.timeout.Milliseconds()))))
	}
	// So nft(8) knows in which byte order an interface's index is.
	order := func(kind byte, t setType) []byte {
		return append([]byte{kind, 4}, map[bool]byte{true: 1, false: 2}[t == ifaceIndex], 0, 0, 0)
	}
	attributes = append(attributes, number(unix.NFTA_SET_FLAGS, flags), nl.NewRtAttr(unix.NFTA_SET_USERDATA, append(order(0, m.key), order(1, m.data)...)))
	b.add(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, m.family, attributes...)
}

func (b *batch) nextSet() uint32 {
	b.sets++
	return b.sets
}

func (b *batch) addChain(c chain) {
	hook := nested(unix.NFTA_CHAIN_HOOK, number(unix.NFTA_HOOK_HOOKNUM, c.hook), number(unix.NFTA_HOOK_PRIORITY, uint32(c.priority)))
	if c.device != "" {
		hook.AddChild(text(unix.NFTA_HOOK_DEV, c.device))
	}
	b.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, c.family,
		text(unix.NFTA_CHAIN_TABLE, b.table), text(unix.NFTA_CHAIN_NAME, c.name), hook,
		number(unix.NFTA_CHAIN_POLICY, policyAccept), text(unix.NFTA_CHAIN_TYPE, c.kind))
	for _, r := range c.rules {
		b.addRule(c, r)
	}
}

// policyAccept is NF_ACCEPT of include/uapi/linux/netfilter.h.
const policyAccept = 1

// addRule appends a rule to a chain. The counter is before the verdict.
func (b *batch) addRule(c chain, r rule) {
	expressions := nl.NewRtAttr(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, nil)
	for i, p := range r.parts {
		if i == len(r.parts)-1 {
			p = join(part{&expr.Counter{}}, p)
		}
		for _, e := range p {
			expressions.AddChild(b.element(c.family, e))
		}
	}
	comment := append([]byte{0, byte(len(r.purpose) + 1)}, nl.ZeroTerminated(r.purpose)...) // NFTNL_UDATA_RULE_COMMENT
	b.add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, c.family,
		text(unix.NFTA_RULE_TABLE, b.table), text(unix.NFTA_RULE_CHAIN, c.name), expressions, nl.NewRtAttr(unix.NFTA_RULE_USERDATA, comment))
}

// element is an expression as an element of a rule.
func (b *batch) element(family byte, e expression) *nl.RtAttr {
	switch e := e.(type) {
	case raw:
		return nested(unix.NFTA_LIST_ELEM, text(unix.NFTA_EXPR_NAME, e.name), nested(unix.NFTA_EXPR_DATA, e.attributes...))
	case oneOf:
		return b.element(family, b.anonymous(family, e))
	case expr.Any:
		data, err := expr.Marshal(family, e)
		if err != nil && b.err == nil {
			b.err = fmt.Errorf("%T: %w", e, err)
		}
		return nl.NewRtAttr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data)
	}
	panic(fmt.Sprintf("%T is no expression", e))
}

// anonymous adds a set that lives and dies with its rule, and returns the look-up in
// it.
func (b *batch) anonymous(family byte, set oneOf) *expr.Lookup {
	const (
		anonymous = 0x1 // NFT_SET_ANONYMOUS and NFT_SET_CONSTANT
		constant  = 0x2
		name      = "__set%d"
	)
	id := b.nextSet()
	b.add(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, family,
		text(unix.NFTA_SET_TABLE, b.table), text(unix.NFTA_SET_NAME, name), number(unix.NFTA_SET_ID, id), number(unix.NFTA_SET_FLAGS, anonymous|constant),
		number(unix.NFTA_SET_KEY_TYPE, set.kind.number), number(unix.NFTA_SET_KEY_LEN, set.kind.length),
		nested(unix.NFTA_SET_DESC, number(unix.NFTA_SET_DESC_SIZE, uint32(len(set.elements)))))
	elements := nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	for _, key := range set.elements {
		elements.AddChild(nested(unix.NFTA_LIST_ELEM, nested(unix.NFTA_SET_ELEM_KEY, nl.NewRtAttr(unix.NFTA_DATA_VALUE, key))))
	}
	b.add(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, family,
		text(unix.NFTA_SET_ELEM_LIST_TABLE, b.table), text(unix.NFTA_SET_ELEM_LIST_SET, name), number(unix.NFTA_SET_ELEM_LIST_SET_ID, id), elements)
	return &expr.Lookup{SourceRegister: register, SetID: id, SetName: name, Invert: set.not}
}

// answerTime is how long the kernel may take to answer. It answers while it takes the
// message; where it cannot answer at all, nothing comes.
const answerTime = 5 * time.Second

// commit has the kernel carry out the batch.
func (b *batch) commit(s *sockets) error { return b.send(s, true) }

// check has the kernel try the batch and undo it: nothing changes, and no event tells
// of it.
func (b *batch) check(s *sockets) error { return b.send(s, false) }

// send sends the batch in one message, and asks for one answer, to its last command:
// then the answers fit into the smallest buffer, however many rules there are. The
// kernel sends the errors of the others before it. Without its end it is undone.
func (b *batch) send(s *sockets, whole bool) error {
	if b.err != nil {
		return b.err
	}
	limit := func(kind int) []byte {
		marker := nl.NewNetlinkRequest(kind, 0)
		marker.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: unix.NFNETLINK_V0, ResId: nfTables})
		return marker.Serialize()
	}
	message := limit(unix.NFNL_MSG_BATCH_BEGIN)
	last := b.messages[len(b.messages)-1]
	last.Flags |= unix.NLM_F_ACK
	for _, m := range b.messages {
		message = append(message, m.Serialize()...)
	}
	if whole {
		message = append(message, limit(unix.NFNL_MSG_BATCH_END)...)
	}
	fd, err := open(len(message))
	if err != nil {
		return err
	}
	s.sent = append(s.sent, fd)
	if err := unix.Sendto(fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("send to nf_tables", err)
	}
	return answerTo(fd, last.Seq)
}

// nfTables is NFNL_SUBSYS_NFTABLES in network byte order.
var nfTables = binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.NFNL_SUBSYS_NFTABLES))

// receiveBuffer is the size of the buffer for answers, in bytes; 0: the node's default.
// A test makes it smaller than any node does.
var receiveBuffer int

// open opens a socket to nfnetlink that takes a message of the length, whatever the
// node's default for its buffer.
func open(length int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, os.NewSyscallError("open a netfilter socket", err)
	}
	const overhead = 4 // the kernel counts what it uses, not what it is given
	for _, option := range []int{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, overhead*length) == nil {
			break
		}
	}
	if receiveBuffer > 0 {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	timeout := unix.NsecToTimeval(answerTime.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1), // errors without the command that they are about
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
	)
	if err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("netfilter socket: %w", err)
	}
	return fd, nil
}

// answerTo reads the answers until that to the command with the number, and returns
// the first error.
func answerTo(fd int, last uint32) error {
	buffer := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		if errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("nf_tables: no answer in %s", answerTime)
		}
		if err != nil {
			return os.NewSyscallError("receive from nf_tables", err)
		}
		for answer := buffer[:n]; len(answer) >= unix.NLMSG_HDRLEN+4; {
			length := int(binary.NativeEndian.Uint32(answer))
			if kind := binary.NativeEndian.Uint16(answer[4:]); kind == unix.NLMSG_ERROR {
				if code := int32(binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])); code != 0 {
					return fmt.Errorf("nf_tables: %w", unix.Errno(-code))
				}
				if binary.NativeEndian.Uint32(answer[8:]) == last {
					return nil
				}
			}
			length = (length + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1)
			answer = answer[min(max(length, unix.NLMSG_HDRLEN), len(answer)):]
		}
	}
}
