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
	redirectPort    uint16
}

func (t target) wiring(inv links.Inventory) wiring.Wiring {
	if t.redirectPort != 0 {
		return wiring.Redirect(t.redirectPort)
	}
	return wiring.Plan(inv.Links(), t.bridgeName, t.preferredBridge)
}

// reconciler brings the pod's network to the wiring that it should have.
type reconciler struct {
	target    target
	rules     rules.Table
	inventory links.Inventory // what the wiring was decided on
}

// outcome is what came of a reconcile.
type outcome struct {
	wiring  wiring.Wiring // aimed at
	changed bool          // something had to be changed for it
	took    time.Duration
	err     error // why it is not reached
}

// reconcile makes the network what it should be for the links that are there.
// An attempt that failed because the links changed meanwhile is made again.
func (r *reconciler) reconcile() outcome {
	began := time.Now()
	var result outcome
	for {
		w, changed, err := r.attempt()
		result = outcome{wiring: w, changed: changed || result.changed, took: time.Since(began), err: err}
		if err == nil || !r.overtaken() {
			return result
		}
	}
}

// attempt puts the rules first: the endpoint is never there without them.
func (r *reconciler) attempt() (w wiring.Wiring, changed bool, err error) {
	if err := r.list(); err != nil {
		return w, false, err
	}
	w = r.target.wiring(r.inventory)
	if !w.Redirected() { // passt asks over IPv4 alone
		if w.IPv6, err = r.inventory.SpeaksIPv6(); err != nil {
			return w, false, err
		}
	}
	ruled, err := r.rules.Install(w)
	if err != nil {
		// A guest that is not served beats a neighbour that is.
		_, partErr := links.Part(r.inventory)
		return w, false, errors.Join(err, partErr)
	}
	made, err := links.EnsureEndpoint(r.inventory, w.IPv6)
	if err != nil {
		return w, true, err
	}
	if made {
		if err := r.list(); err != nil {
			return w, true, err
		}
	}
	joined, err := links.EnsureJoined(r.inventory, w)
	return w, ruled || made || joined, err
}

// list reads the links, again where they changed while it read.
func (r *reconciler) list() (err error) {
	for {
		r.inventory, err = links.List()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
}

// overtaken says whether the links are no longer those that were read.
func (r *reconciler) overtaken() bool {
	before := r.inventory
	return r.list() == nil && !r.inventory.Equal(before)
}
