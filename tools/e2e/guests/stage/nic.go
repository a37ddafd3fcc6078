package stage

// ReplugTap is NIC hot-unplug and hot-plug of the pod network on a running guest, as KubeVirt does it: the NIC
// leaves the guest and virt-handler deletes the tap; a new tap becomes a port of the bridge and the NIC is back,
// without an address. The second time it is a NIC of another name: see [VM.PlugPrimary].
func (v *VM) ReplugTap() {
	v.UnplugPrimary()
	v.PlugPrimary()
}

// UnplugPrimary takes the pod network's NIC from the guest, and the tap from the pod.
func (v *VM) UnplugPrimary() {
	v.t.Check(v.Guest.Unplug(v.t.Context(), v.primary))
	v.t.Check(v.Net.UnplugTap())
}

// PlugPrimary gives the pod a tap again, and the guest a NIC.
func (v *VM) PlugPrimary() {
	v.t.Check(v.Net.PlugTap())
	var err error
	v.primary, err = v.Guest.Plug(v.t.Context(), v.nics[0])
	v.t.Check(err)
}
