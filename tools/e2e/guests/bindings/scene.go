package bindings

import (
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/hand"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
	"github.com/example/kubevirt-imds/tools/podnet"
)

// vmName is that of each row's VM.
const vmName = "web"

// scene is a row's VM, with its guest running.
type scene struct {
	row
	vm     *stage.VM
	token  string // the present one
	routes string // the guest's, and its addresses, before anything was asked
}

// columns are what is proved of the row's guest, in this order.
func (sc *scene) columns() []suite.Check {
	served := []suite.Check{
		sc.column("served", "the guest gets its token by the way that its routes are; first answer", sc.served),
		sc.column("identity", "and its identity", sc.identity),
	}
	if !sc.withoutIPv4 {
		served = append(served,
			sc.column("on-link", "also with a route by which it looks for the address on its own network; first answer", sc.onLinkServed))
	}
	if !sc.withoutIPv4 && !sc.network.WithoutIPv6 && !sc.passt {
		served = append(served,
			sc.column("IPv6", "also at fe80::a9fe:a9fe; first answer", sc.servedByIPv6))
	}
	served = append(served,
		sc.column("large", "an answer larger than several packets arrives whole", sc.large),
		sc.column("neighbour", "a neighbour that asks gets no answer, whichever MAC it sends to; ways tried", sc.neighbourAsks),
		sc.column("impostor", "while a neighbour claims the address, the guest still gets its token; true answers", sc.impostor),
	)
	closed := []suite.Check{
		sc.column("closed", "on a kernel without nf_tables nobody is served, and imds-init says why, once; what the guest sees", sc.closed),
	}
	harmless := []suite.Check{
		sc.column("own-network", "guest and neighbour reach each other, the VM's own port 80 too, as the binding has it; round trip", sc.ownNetwork),
		sc.column("unchanged", "the guest's routes, and the pod's routes, addresses and links, are those that are there without the project", sc.unchanged),
	}
	compared := []suite.Check{
		sc.column("throughput", "the guest fetches from the neighbour as fast as without the project; ratio", sc.throughput),
	}
	switch {
	case sc.withoutNetfilter:
		return append(closed, harmless...)
	case sc.compared:
		return slices.Concat(served, harmless, compared)
	}
	return append(served, harmless...)
}

// column is a check of the row, which shows the VM when it fails.
func (sc *scene) column(name, proves string, run func(*suite.T, *stage.VM)) suite.Check {
	return suite.Check{Name: name, Proves: proves, Run: func(t *suite.T) {
		vm := sc.vm.In(t)
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("%s", vm.Describe())
			}
		})
		run(t, vm)
	}}
}

// set makes the VM and boots its guest.
func (sc *scene) set(t *suite.T, s *stage.Stage) {
	sc.row = sc.complete()
	vm := s.New(t, sc.options())
	sc.vm = vm
	if sc.withoutNetfilter {
		vm.Expected = isGuestsOwn
	}
	if sc.network.Bystander {
		vm.Watch(podnet.BystanderInterface)
	}
	vm.StartSidecars()
	if sc.passt {
		sc.startPasst(t, vm)
	} else {
		vm.Wire()
	}
	if sc.second != "" {
		vm.AddSecondary(sc.second)
	}
	if sc.neighbourLink.IsValid() {
		addToNeighbour(t, vm, sc.neighbourLink)
	}
	vm.Boot()
	if sc.configure == "" {
		vm.Configure(sc.nic)
	} else {
		vm.Shell(sc.configure)
	}
	if sc.withoutIPv4 {
		sc.awaitIPv6(vm)
	}
	sc.token = vm.RotateToken()
	sc.routes = guestRoutes(vm)
}

func addToNeighbour(t *suite.T, vm *stage.VM, address netip.Prefix) {
	up, err := vm.Net.Neighbour.Netlink().LinkByName(podnet.NeighbourInterface)
	t.Check(err)
	parsed, err := netlink.ParseAddr(address.String())
	t.Check(err)
	t.Check(vm.Net.Neighbour.Netlink().AddrAdd(up, parsed))
}

// guestRoutes are the guest's routes and addresses. Those of IPv6 come by themselves, some time after the boot.
func guestRoutes(vm *stage.VM) string { return vm.Shell("ip -4 route; ip -4 -o addr") }

// url is where the guest asks.
func (sc *scene) url() string {
	if sc.withoutIPv4 {
		return sc.urlOfIPv6()
	}
	return stage.MetadataURL
}

// get asks from inside the guest for a path.
func (sc *scene) get(vm *stage.VM, path string) hand.Got { return vm.GetURL(sc.url() + path) }

// forgetNeighbours has the guest ask for every MAC again.
func (sc *scene) forgetNeighbours(vm *stage.VM) { vm.Shell("ip neigh flush dev " + sc.nic) }
