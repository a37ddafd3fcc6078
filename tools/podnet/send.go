package podnet

import "golang.org/x/sys/unix"

// SendFrame puts an Ethernet frame on an interface as it is.
func (n *Namespace) SendFrame(name string, frame []byte) error {
	link, err := n.link(name)
	if err != nil {
		return err
	}
	// Protocol 0: it only sends.
	socket, err := n.packetSocket(link.Attrs().Index, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	return unix.Sendto(socket, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index})
}
