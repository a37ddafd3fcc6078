// Package guestagent is how a test does something inside a real guest: a program that runs there, in the folder agent, and the
// [Client] that tells it what to do over a serial port. It never configures the guest's network, but by the shell
// commands that a test gives it.
//
// They speak as QEMU and its clients do, by package qmp. A request that goes on for long, such as [Ask], is replied to
// when it has begun, and ended by another. Nothing is said while it goes on, so that the guest may be paused, or migrated
// to another QEMU, meanwhile.
//
// All times are of the guest's monotonic clock, which stands still while the guest is paused.
package guestagent

import "time"

// Port is the name of the virtio serial port between the client and the guest's program.
const Port = "imds.agent"

// Run is a command for the guest's shell, busybox ash.
type Run struct {
	Command string        `json:"command"`
	Limit   time.Duration `json:"limit"` // nanoseconds, as all durations here; then it is killed. 0: 30 s
}

// Ran is what became of it.
type Ran struct {
	Exit   int    `json:"exit"`   // 128 and more: ended by a signal; -1: killed at its limit
	Output string `json:"output"` // standard output and standard error as they came
}

// Get is an HTTP request by a connection of its own.
type Get struct {
	URL    string            `json:"url"`
	Method string            `json:"method,omitempty"` // empty: GET
	Header map[string]string `json:"header,omitempty"` // Host among them
	Body   string            `json:"body,omitempty"`
	Limit  time.Duration     `json:"limit,omitempty"` // 0: 5 s
	// Namespace is the path of a network namespace in the guest that the connection is made in. Empty: the guest's
	// own.
	Namespace string `json:"namespace,omitempty"`
	// Source is the address that the connection comes from. Empty: the kernel chooses.
	Source string `json:"source,omitempty"`
	// HopLimit is the TTL of the request's packets. 0: the kernel's default.
	HopLimit int `json:"hopLimit,omitempty"`
}

// Got is the answer, or how the attempt failed.
type Got struct {
	// Failure is empty where there was a whole answer, whatever its status.
	Failure Failure `json:"failure,omitempty"`
	Detail  string  `json:"detail,omitempty"` // of the failure

	Status int               `json:"status,omitempty"`
	Header map[string]string `json:"header,omitempty"` // the first value of each
	Body   string            `json:"body,omitempty"`
	Source string            `json:"source,omitempty"` // the connection's own address and port
	Took   time.Duration     `json:"took"`
}

// Failure is a way in which a request fails.
type Failure string

// The failures.
const (
	Refused     Failure = "refused"     // a TCP reset instead of a connection
	Reset       Failure = "reset"       // a TCP reset later, or an end before the answer's
	Timeout     Failure = "timeout"     // nothing within the limit
	Unreachable Failure = "unreachable" // no route, no ARP answer, or an ICMP that says so
	Unknown     Failure = "unknown"     // something else: see the detail
	BadStatus   Failure = "bad status"  // an answer, but not 200; of Ask alone
)

// Ask is the same request many times a second, each at its time whether or not the one before was answered, until
// it is stopped.
type Ask struct {
	Get
	Rate int `json:"rate"` // requests in a second
	// Keep has all of them go over one connection for as long as that lasts, each after the answer to the one
	// before. After a failure the next one opens another.
	Keep bool `json:"keep,omitempty"`
	// InTurn has each begin when the one before has ended at the earliest: their answers have an order.
	InTurn bool `json:"inTurn,omitempty"`
}

// Asked is what came of it.
type Asked struct {
	Sent     int             `json:"sent"`
	Answered int             `json:"answered"` // with 200
	Failures map[Failure]int `json:"failures"`
	// Lost are the first thousand failures in the order of their ends.
	Lost []Loss `json:"lost"`
	// Gap is the longest time between the ends of two answers that follow each other, between the begin and the
	// first, and between the last and the time when it was told to stop.
	Gap time.Duration `json:"gap"`
	// GapBegin is when it began, since the begin of the asking.
	GapBegin time.Duration `json:"gapBegin"`
	// Late is how much later than at its time a request began at most: so long the guest itself was held up, and
	// could not have taken an answer.
	Late time.Duration `json:"late"`
	// Bodies are the answers' different bodies in the order in which each began to come. One that comes back
	// after another is there again.
	Bodies []Body        `json:"bodies"`
	Took   time.Duration `json:"took"`
}

// Loss is a request without an answer. Begin and End are since the begin of the asking.
type Loss struct {
	Begin   time.Duration `json:"begin"`
	End     time.Duration `json:"end"`
	Failure Failure       `json:"failure"`
	Detail  string        `json:"detail"`
}

// Body is a run of answers of one body, in the order of the requests' begins. First and Last are when the first of
// them began and the last of them ended, since the begin of the asking.
type Body struct {
	Text  string        `json:"text"`
	Count int           `json:"count"`
	First time.Duration `json:"first"`
	Last  time.Duration `json:"last"`
}

// Send gives Ethernet frames to a NIC, as they are.
type Send struct {
	Interface string   `json:"interface"`
	Frames    [][]byte `json:"frames"` // each with its header, without a checksum at its end
	// Rounds is how often all of them are sent. 0: until it is stopped.
	Rounds int `json:"rounds,omitempty"`
}

// Sent is how many frames the NIC took.
type Sent struct {
	Frames int           `json:"frames"`
	Took   time.Duration `json:"took"`
}

// Sniff records the frames that pass a NIC, both ways, until it is stopped.
type Sniff struct {
	Interface string `json:"interface"`
	// EtherType, an ETH_P_* constant, is what it records.
	EtherType uint16 `json:"etherType,omitempty"`
}

// Sniffed are the frames.
type Sniffed struct {
	Frames []Frame `json:"frames"`
}

// Frame is one of them.
type Frame struct {
	At       time.Duration `json:"at"` // since the begin of the recording
	Outgoing bool          `json:"outgoing"`
	Data     []byte        `json:"data"`
}

// Hold opens TCP connections and keeps them until it is stopped.
type Hold struct {
	Address     string `json:"address"` // with the port
	Connections int    `json:"connections"`
	// Drip is what each connection sends, a byte a second. Empty: nothing.
	Drip string `json:"drip,omitempty"`
}

// Held is what became of the connections.
type Held struct {
	Opened   int             `json:"opened"`
	Failures map[Failure]int `json:"failures"` // of those that could not be opened
	Ended    int             `json:"ended"`    // by the other side, of those opened
}

// NAT has the guest's kernel give its own address to what it forwards to a NIC, with nf_tables, for which busybox
// has no command. The modules of the list /lib/nat have to be loaded.
type NAT struct {
	Interface string `json:"interface"`
}
