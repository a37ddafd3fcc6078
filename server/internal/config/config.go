// Package config reads the settings of imds-server from its environment.
package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/example/kubevirt-imds/server/internal/quote"
)

// Defaults of the variables that have one.
const (
	DefaultTokenPath    = "/var/run/secrets/tokens/token"
	DefaultListenAddr   = listenAddrIPv4 + ",[fe80::a9fe:a9fe]:80"
	DefaultListenDevice = "veth-imds"
)

// listenAddrIPv4 is the part of the default that says something without a device.
const listenAddrIPv4 = "169.254.169.254:80"

// Lookup finds a variable of the environment, as os.LookupEnv does.
type Lookup func(name string) (value string, set bool)

// Config holds all settings of the server.
type Config struct {
	// TokenPath is the file of the default token.
	TokenPath string
	// Identity is what the guest is told about itself.
	Identity Identity
	// Listen is where the guest finds the server.
	Listen Listen
	// RequireHeader makes /v1/ want the header "Metadata: true".
	RequireHeader bool
	// Node is how the agent of the node finds the pod.
	Node Node
}

// Node is what the agent of the node is told to wire the pod, which judges it.
type Node struct {
	// Socket is the path of the socket to hand the pod over on; empty: there is none,
	// since imds-init wires the pod.
	Socket          string
	BridgeName      string
	PreferredBridge string
	Network         string
}

// Identity is what Kubernetes calls the VM. VMIUID and NodeName may be empty.
type Identity struct {
	Namespace          string
	ServiceAccountName string
	VMName             string
	PodName            string
	VMIUID             string
	NodeName           string
}

// Listen is the addresses and what narrows them.
type Listen struct {
	// Addrs are what the guest asks: addresses of the pod, at least one, never a
	// wildcard. Of those that do not exist the server waits for each by itself.
	Addrs []netip.AddrPort
	// RedirectPort is the port to listen on in place of the addresses' own, to which
	// imds-init redirects the guest: under passt those belong to the VM. It is for
	// IPv4 alone. 0 means the addresses' own.
	RedirectPort uint16
	// Device is the network device to listen on; empty means all of them.
	Device string
	// HopLimit is the TTL of the answers, 1 to 255; 0 means the kernel's default.
	HopLimit int
}

// Served are those of the addresses that the guest is served at: under passt
// IPv4's alone.
func (l Listen) Served() []netip.AddrPort {
	if l.RedirectPort == 0 {
		return l.Addrs
	}
	return slices.DeleteFunc(slices.Clone(l.Addrs), func(addr netip.AddrPort) bool { return !addr.Addr().Is4() })
}

// Bind returns the address to listen on for one of those that are served.
func (l Listen) Bind(served netip.AddrPort) netip.AddrPort {
	if l.RedirectPort == 0 {
		return served
	}
	return netip.AddrPortFrom(served.Addr(), l.RedirectPort)
}

// Dial returns the address under which a process of the pod reaches the server:
// the first that is served, and for a link-local IPv6 address the device as its
// zone.
func (l Listen) Dial() netip.AddrPort {
	first := l.Bind(l.Served()[0])
	if !isLinkLocal(first) {
		return first
	}
	return netip.AddrPortFrom(first.Addr().WithZone(l.Device), first.Port())
}

// ProbeSource returns the address that the pod's probes come from, and the guest
// never: 127.0.0.1, answers to which imds-init keeps in the pod. With IPv6 it is
// the address itself, which is not enough for IPv4, since passt asks from there.
func (l Listen) ProbeSource() netip.Addr {
	if first := l.Served()[0].Addr(); first.Is6() {
		return first
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// isLinkLocal tells whether an address says nothing without a device. IPv4 has
// no such addresses: 169.254.169.254 is routed like any other.
func isLinkLocal(addr netip.AddrPort) bool {
	return addr.Addr().Is6() && addr.Addr().IsLinkLocalUnicast()
}

// FromEnvironment reads all settings. The error names every variable that is
// wrong, each in a line with its value and the remedy.
func FromEnvironment(lookup Lookup) (Config, error) {
	e := environment{lookup: lookup}
	config := Config{
		TokenPath: e.text("IMDS_TOKEN_PATH", DefaultTokenPath),
		Identity: Identity{
			Namespace:          e.required("IMDS_NAMESPACE", "the namespace of the pod (downward API: metadata.namespace)"),
			ServiceAccountName: e.required("IMDS_SA_NAME", "the name of the pod's ServiceAccount (downward API: spec.serviceAccountName)"),
			VMName:             e.required("IMDS_VM_NAME", "the name of the VM (downward API: metadata.annotations['imds.kubevirt.io/vm-name'])"),
			PodName:            e.required("IMDS_POD_NAME", "the name of the pod (downward API: metadata.name)"),
			VMIUID:             e.text("IMDS_VMI_UID", ""),
			NodeName:           e.text("IMDS_NODE_NAME", ""),
		},
		Listen:        e.listen(),
		RequireHeader: e.boolean("IMDS_REQUIRE_HEADER"),
		Node: Node{
			Socket:          e.text("IMDS_NODE_SOCKET", ""),
			BridgeName:      e.text("IMDS_BRIDGE_NAME", ""),
			PreferredBridge: e.text("IMDS_PREFERRED_BRIDGE", ""),
			Network:         e.text("IMDS_NETWORK", ""),
		},
	}
	return config, errors.Join(e.problems...)
}

// ListenFromEnvironment reads the settings of the listener alone, which is all
// that a probe needs. The error is like FromEnvironment's.
func ListenFromEnvironment(lookup Lookup) (Listen, error) {
	e := environment{lookup: lookup}
	listen := e.listen()
	return listen, errors.Join(e.problems...)
}

// AgentMetrics is where the metrics of the node's agent come from, and where they are
// served.
type AgentMetrics struct {
	Socket  string // on which the agent tells them
	Address string // host and port
}

// AgentMetricsFromEnvironment reads the settings of the server of these metrics. The
// error is like FromEnvironment's.
func AgentMetricsFromEnvironment(lookup Lookup) (AgentMetrics, error) {
	e := environment{lookup: lookup}
	settings := AgentMetrics{
		Socket:  e.required("IMDS_METRICS_SOCKET", "the path in IMDS_METRICS_SOCKET of imds-init agent"),
		Address: e.required("IMDS_METRICS_ADDRESS", "where to answer Prometheus, such as 192.0.2.1:9438"),
	}
	return settings, errors.Join(e.problems...)
}

// environment reads variables and collects what is wrong with them.
type environment struct {
	lookup   Lookup
	problems []error
}

func (e *environment) wrong(name, value, remedy string) {
	e.problems = append(e.problems, fmt.Errorf("%s=%s: %s", name, quote.Text(value), remedy))
}

// text returns the value of a variable, or fallback if it is empty or not set.
func (e *environment) text(name, fallback string) string {
	if value, _ := e.lookup(name); value != "" {
		return value
	}
	return fallback
}

func (e *environment) required(name, meaning string) string {
	value := e.text(name, "")
	if value == "" {
		e.wrong(name, value, "it is required: set it to "+meaning)
	}
	return value
}

func (e *environment) boolean(name string) bool {
	value := e.text(name, "false")
	if value != "true" && value != "false" {
		e.wrong(name, value, `set it to "true" or "false", or leave it empty for "false"`)
	}
	return value == "true"
}

func (e *environment) listen() Listen {
	listen := Listen{
		RedirectPort: e.redirectPort("IMDS_REDIRECT_PORT"),
		Device:       e.device("IMDS_LISTEN_DEVICE"),
		HopLimit:     e.hopLimit("IMDS_HOP_LIMIT"),
	}
	fallback := DefaultListenAddr
	if listen.Device == "" {
		fallback = listenAddrIPv4
	}
	listen.Addrs = e.listenAddrs("IMDS_LISTEN_ADDR", fallback)
	if listen.Device == "" && slices.ContainsFunc(listen.Addrs, isLinkLocal) {
		e.wrong("IMDS_LISTEN_DEVICE", "", "set it to the device of the link-local address in IMDS_LISTEN_ADDR")
	}
	if len(listen.Served()) == 0 {
		e.wrong("IMDS_LISTEN_ADDR", e.text("IMDS_LISTEN_ADDR", fallback), "add an IPv4 address: IMDS_REDIRECT_PORT works with IPv4 only")
	}
	return listen
}

func (e *environment) listenAddrs(name, fallback string) (addrs []netip.AddrPort) {
	for value := range strings.SplitSeq(e.text(name, fallback), ",") {
		addrs = append(addrs, e.listenAddr(name, strings.TrimSpace(value)))
	}
	return addrs
}

func (e *environment) listenAddr(name, value string) netip.AddrPort {
	addr, err := netip.ParseAddrPort(value)
	ip := addr.Addr()
	switch {
	case err != nil || addr.Port() == 0:
		e.wrong(name, value, "set it to an IP address and a port, such as 169.254.169.254:80 or [fd00:ec2::254]:80, or to several with commas between")
	case ip.Zone() != "":
		e.wrong(name, value, "leave out the zone and name the device in IMDS_LISTEN_DEVICE")
	case ip.IsUnspecified() || ip.IsMulticast() || ip.Is4In6():
		e.wrong(name, value, "set it to one address of the pod: every network of the pod could reach a wildcard")
	}
	return addr
}

func (e *environment) redirectPort(name string) uint16 {
	value := e.text(name, "")
	if value == "" {
		return 0
	}
	port, err := strconv.ParseUint(value, 10, 16)
	if err != nil || port < 1024 {
		e.wrong(name, value, "set it to a port from 1024 to 65535, the one that imds-init redirects the guest to, or leave it empty for a VM on a bridge")
	}
	return uint16(port)
}

// device tells a variable that is not set, which has a default, from an empty
// one, which means all devices.
func (e *environment) device(name string) string {
	value, set := e.lookup(name)
	if !set {
		return DefaultListenDevice
	}
	// IFNAMSIZ of linux/if.h and dev_valid_name of net/core/dev.c.
	const maxLength = 15
	if len(value) > maxLength || value == "." || value == ".." || strings.ContainsAny(value, "/: \t\n\v\f\r") {
		e.wrong(name, value, "set it to the name of a network device (at most 15 bytes, no slash, colon or white space), or empty for all devices")
	}
	return value
}

func (e *environment) hopLimit(name string) int {
	value := e.text(name, "")
	if value == "" {
		return 0
	}
	limit, err := strconv.Atoi(value)
	if err != nil || limit < 1 || limit > 255 {
		e.wrong(name, value, "set it to a number from 1 to 255, or leave it empty for the kernel's default")
	}
	return limit
}
