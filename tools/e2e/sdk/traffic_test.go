package sdk

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// traffic is what passed the guest's interfaces.
type traffic struct {
	// attempts are where the guest wanted to go: "tcp ADDRESS:PORT", or "udp
	// ADDRESS:PORT" and the name that a resolver is asked for.
	attempts map[string]bool
	// streams hold the bytes of each direction of each TCP connection.
	streams map[flow]*stream
}

type flow struct{ from, to netip.AddrPort }

type stream struct {
	next uint32 // the sequence number that follows
	data []byte
}

func newTraffic(frames []podnet.Frame) traffic {
	t := traffic{attempts: make(map[string]bool), streams: make(map[flow]*stream)}
	for _, frame := range frames {
		t.add(frame)
	}
	return t
}

func (t traffic) add(frame podnet.Frame) {
	const ethernet = 14
	data := frame.Data
	if len(data) < ethernet+20 || binary.BigEndian.Uint16(data[12:]) != unix.ETH_P_IP {
		return
	}
	packet := data[ethernet:]
	packet = packet[:min(len(packet), int(binary.BigEndian.Uint16(packet[2:])))]
	segment := packet[4*(packet[0]&15):]
	if len(segment) < 8 {
		return
	}
	address := func(at, port int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(packet[at:])), binary.BigEndian.Uint16(segment[port:]))
	}
	f := flow{from: address(12, 0), to: address(16, 2)}
	switch packet[9] {
	case unix.IPPROTO_UDP:
		if frame.Outgoing {
			t.attempts[strings.TrimSpace(fmt.Sprintf("udp %s %s", f.to, question(segment[8:])))] = true
		}
	case unix.IPPROTO_TCP:
		t.addSegment(f, segment, frame.Outgoing)
	}
}

func (t traffic) addSegment(f flow, segment []byte, outgoing bool) {
	const syn, ack = 2, 16
	sequence, payload := binary.BigEndian.Uint32(segment[4:]), segment[4*(segment[12]>>4):]
	if flags := segment[13]; flags&syn != 0 {
		t.streams[f] = &stream{next: sequence + 1}
		if outgoing && flags&ack == 0 {
			t.attempts["tcp "+f.to.String()] = true
		}
		return
	}
	if s := t.streams[f]; s != nil && sequence == s.next { // others were seen before
		s.data, s.next = append(s.data, payload...), sequence+uint32(len(payload))
	}
}

// question returns the name that a DNS query asks for (RFC 1035 section 4.1.2).
func question(query []byte) string {
	const header = 12
	var labels []string
	for at := header; at < len(query) && query[at] != 0 && at+1+int(query[at]) <= len(query); at += 1 + int(query[at]) {
		labels = append(labels, string(query[at+1:at+1+int(query[at])]))
	}
	return strings.Join(labels, ".")
}

// contains tells whether something passed in a TCP connection.
func (t traffic) contains(text string) bool {
	for _, s := range t.streams {
		if bytes.Contains(s.data, []byte(text)) {
			return true
		}
	}
	return false
}

// exchanges returns the requests to an address and how they were answered, such
// as "GET /v1/token 200", sorted.
func (t traffic) exchanges(test *testing.T, server netip.AddrPort) (all []string) {
	test.Helper()
	for f, s := range t.streams {
		if f.to != server {
			continue
		}
		requests, responses := bufio.NewReader(bytes.NewReader(s.data)), bufio.NewReader(bytes.NewReader(t.streams[flow{f.to, f.from}].data))
		for {
			request, err := http.ReadRequest(requests)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				test.Fatalf("a request to %s: %v", server, err)
			}
			response, err := http.ReadResponse(responses, request)
			if err != nil {
				test.Fatalf("the response to %s %s: %v", request.Method, request.URL, err)
			}
			if _, err := io.Copy(io.Discard, response.Body); err != nil {
				test.Fatalf("the response to %s %s: %v", request.Method, request.URL, err)
			}
			all = append(all, fmt.Sprintf("%s %s %d", request.Method, request.URL, response.StatusCode))
		}
	}
	slices.Sort(all)
	return all
}
