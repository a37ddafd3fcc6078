package bindings

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// vmPage is what the VM's own web server answers.
const vmPage = "the VM's own page"

// vmPorts are where the VM's web servers listen.
var vmPorts = []uint16{80, 8080}

// ownNetwork is the VM's own traffic, both ways.
func (sc *scene) ownNetwork(t *suite.T, vm *stage.VM) {
	ends := sc.ends(t, vm)
	ends.guestReachesNeighbour(t, vm)
	ends.neighbourReachesGuest(t, vm, sc.unlisted)
}

// ends are the addresses of the VM's own traffic.
type ends struct {
	neighbour       netip.Addr // as the guest writes it
	neighbourAtHome netip.Addr // as the neighbour does
	guest           netip.Addr // as the neighbour writes it
}

// ends are those of the row, or of IPv6 for a guest that has nothing else: link-local ones, with the names or numbers
// of interfaces, where no NAT is in between.
func (sc *scene) ends(t *suite.T, vm *stage.VM) ends {
	if !sc.withoutIPv4 {
		return ends{neighbour: sc.neighbour, neighbourAtHome: sc.neighbour, guest: sc.guest}
	}
	if sc.network.Binding == podnet.Masquerade {
		return ends{neighbour: podnet.NeighbourIPv6Addr, neighbourAtHome: podnet.NeighbourIPv6Addr, guest: podnet.PodIPv6Addr}
	}
	neighbour, err := vm.Net.Neighbour.LinkLocal(podnet.NeighbourInterface)
	t.Check(err)
	uplink, err := vm.Net.Neighbour.Netlink().LinkByName(podnet.NeighbourInterface)
	t.Check(err)
	zone := fmt.Sprint(uplink.Attrs().Index)
	guest, err := netip.ParseAddr(strings.TrimSpace(vm.Shell(
		"ip -6 -o addr show dev " + sc.nic + " scope link | sed 's/.* inet6 //; s:/.*::'")))
	t.Check(err)
	return ends{neighbour: neighbour.WithZone(sc.nic), neighbourAtHome: neighbour.WithZone(zone), guest: guest.WithZone(zone)}
}

// roundTrip is the line of busybox ping, in milliseconds.
var roundTrip = regexp.MustCompile(`min/avg/max = [0-9.]+/([0-9.]+)/`)

func (e ends) guestReachesNeighbour(t *suite.T, vm *stage.VM) {
	ping := roundTrip.FindStringSubmatch(vm.Shell("ping -c 3 -A -W 2 " + e.neighbour.String()))
	if ping == nil {
		t.Fatalf("ping says no time")
	}
	t.Figure("%s ms", ping[1])

	stop, err := serve(t.Context(), vm, e.neighbourAtHome, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.RemoteAddr)
	})
	t.Check(err)
	defer stop()
	got := vm.GetURL(url(netip.AddrPortFrom(e.neighbour, 80)))
	requireAnswer(t, got)
	seen, err := netip.ParseAddrPort(got.Body)
	t.Check(err)
	if seen.Addr().WithZone("") != e.guest.WithZone("") {
		t.Errorf("the neighbour sees the guest at %s, want %s", seen.Addr(), e.guest)
	}
}

func (e ends) neighbourReachesGuest(t *suite.T, vm *stage.VM, unlisted []uint16) {
	vm.Shell("mkdir -p /tmp/www && echo -n \"" + vmPage + "\" >/tmp/www/index.html")
	for _, port := range vmPorts {
		vm.Shell(fmt.Sprintf("httpd -p %d -h /tmp/www", port))
	}
	for _, port := range vmPorts {
		page, err := neighbourGets(t.Context(), vm, url(netip.AddrPortFrom(e.guest, port)))
		switch closed := slices.Contains(unlisted, port); {
		case closed && !errors.Is(err, syscall.ECONNREFUSED):
			t.Errorf("the VM does not list port %d, and the neighbour gets from it %q, %v", port, page, err)
		case !closed && (err != nil || page != vmPage):
			t.Errorf("the neighbour gets from the VM's port %d: %q, %v", port, page, err)
		}
	}
}

// url has its zone, where there is one, as URLs have it (RFC 6874).
func url(at netip.AddrPort) string {
	return "http://" + strings.ReplaceAll(at.String(), "%", "%25") + "/"
}

// serve has the neighbour answer at its port 80.
func serve(ctx context.Context, vm *stage.VM, at netip.Addr, answer http.HandlerFunc) (stop func() error, err error) {
	listener, err := vm.Net.Neighbour.Listen(ctx, "tcp", netip.AddrPortFrom(at, 80).String())
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: answer}
	go server.Serve(listener)
	return server.Close, nil
}

func neighbourGets(ctx context.Context, vm *stage.VM, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, stage.Patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := vm.Net.Neighbour.HTTPClient().Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}
