package rules

import (
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// sockets are those to nf_tables that were opened and are to be closed together. When
// any netfilter socket of a network namespace is closed, the kernel first destroys what
// transactions have deleted there, which takes it some ten milliseconds
// (nft_rcv_nl_event in net/netfilter/nf_tables_api.c).
type sockets struct {
	questions map[int]*nl.SocketHandle
	sent      []int // descriptors by which transactions were sent
}

// forQuestions returns the one socket for questions.
func (s *sockets) forQuestions() (map[int]*nl.SocketHandle, error) {
	if s.questions != nil {
		return s.questions, nil
	}
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	if err := socket.SetReceiveTimeout(&nl.SocketTimeoutTv); err != nil {
		socket.Close()
		return nil, err
	}
	s.questions = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: socket}}
	return s.questions, nil
}

func (s *sockets) close() {
	for _, one := range s.questions {
		one.Close()
	}
	for _, fd := range s.sent {
		unix.Close(fd)
	}
	*s = sockets{}
}
