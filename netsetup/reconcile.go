package main

import (
	"errors"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/example/kubevirt-imds/netsetup/internal/links"
	"github.com/example/kubevirt-imds/netsetup/internal/rules"
	"github.com/example/kubevirt-imds/netsetup/internal/wiring"
)

// target says which of the VM's networks the guest asks by: by redirection
// where there is a port for it, otherwise by a bridge.
type target struct {
	bridgeName      string // empty: found among those that are there
	preferredBridge string // taken of several; empty: none is preferred
	exclusive       bool   // the user has named the network that is served
	redirectPort    uint16
}

func (t target) wiring(inv links.Inventory) wiring.Wiring {
	if t.redirectPort != 0 {
		return wiring.Redirect(t.redirectPort)
	}
	w := wiring.Plan(inv.Links(), t.bridgeName, t.preferredBridge)
	w.Exclusive = t.exclusive
	return w
}

// reconciler brings the network of a pod to the wiring that it should have: that of
// the network namespace of the thread which calls it.
type reconciler struct {
	target    target
	probed    bool // the kernel has been asked what it can do
	rules     rules.Table
	inventory links.Inventory // what the wiring was decided on
}

// outcome is what came of a reconcile.
type outcome struct {
	wiring  wiring.Wiring // aimed at
	ipv6    bool          // served over IPv6 too
	led     []string      // taps of other bridges whose questions are led to the endpoint
	changed bool          // something had to be changed for it
	took    time.Duration
	err     error   // why nobody is served
	missing []error // what the kernel lacks that only some guests miss
	lesser  error   // why some are not: over IPv6, or by another NIC, or refused at once
}

// reconcile makes the network what it should be for the links that are there.
// An attempt that failed because the links changed meanwhile is made again, but not
// for ever: their next event is another occasion.
func (r *reconciler) reconcile() outcome {
	const most = 5
	defer r.rules.Release()
	began := time.Now()
	changed := false
	for attempts := 1; ; attempts++ {
		result := r.attempt()
		changed = changed || result.changed
		if result.err == nil && result.lesser == nil || attempts == most || !r.overtaken() {
			result.changed, result.took = changed, time.Since(began)
			return result
		}
	}
}

// probe asks the kernel what it can do, until it can do enough.
func (r *reconciler) probe() (err error) {
	if !r.probed {
		r.rules.Node, err = rules.Probe(r.target.redirectPort != 0)
		r.probed = err == nil
	}
	return err
}

// attempt puts the rules first: the endpoint is never there without them. What only
// some guests need comes last, so that its failure takes nothing from the others.
func (r *reconciler) attempt() (o outcome) {
	if o.err = r.probe(); o.err != nil {
		return o
	}
	o.missing = r.rules.Node.Missing
	if o.err = r.list(); o.err != nil {
		return o
	}
	o.wiring = r.target.wiring(r.inventory)
	ruled, err := r.rules.Install(o.wiring)
	if err != nil {
		// A guest that is not served beats a neighbour that is.
		_, partErr := links.Part(r.inventory)
		o.err = errors.Join(err, partErr)
		return o
	}
	made, err := links.EnsureEndpoint(r.inventory)
	o.changed = ruled || made
	if err == nil && made {
		err = r.list()
	}
	if err != nil {
		o.err = err
		return o
	}
	joined, err := links.EnsureJoined(r.inventory, o.wiring)
	o.changed = o.changed || joined
	if err != nil {
		o.err = err
		return o
	}
	var lesser []error
	if r.rules.Node.IPv6 && !o.wiring.Redirected() { // passt asks over IPv4 alone
		served, changed, err := links.EnsureIPv6(r.inventory, o.wiring.MTU)
		o.ipv6, o.changed, lesser = served, o.changed || changed, append(lesser, err)
	}
	if r.rules.Node.Leads && !o.wiring.Exclusive {
		o.led = wiring.Names(o.wiring.OtherGuests)
	}
	hung, err := r.rules.InstallDevices(o.wiring, r.inventory.Index(wiring.Port))
	o.changed = o.changed || hung
	o.lesser = errors.Join(append(lesser, err)...)
	return o
}

// list reads the links, again where they changed while it read.
func (r *reconciler) list() (err error) {
	const most = 20
	for range most {
		r.inventory, err = links.List()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return err
}

// overtaken says whether the links are no longer those that were read.
func (r *reconciler) overtaken() bool {
	before := r.inventory
	return r.list() == nil && !r.inventory.Equal(before)
}
