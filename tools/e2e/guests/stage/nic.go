package stage

import "github.com/example/kubevirt-imds/tools/e2e/qemu"

// AddNIC gives the VM, before it boots, a NIC whose other end the check has made itself, such as passt's socket.
func (v *VM) AddNIC(nic qemu.NIC) { v.nics = append(v.nics, nic) }

// UnplugPrimary is NIC hot-unplug of the pod network on a running guest, as KubeVirt does it: the NIC leaves the guest,
// and virt-handler deletes the tap.
func (v *VM) UnplugPrimary() {
	v.t.Check(v.Guest.Unplug(v.t.Context(), v.primary))
	v.t.Check(v.Net.UnplugTap())
}

// PlugPrimary is NIC hot-plug: a new tap becomes a port of the bridge, and the guest has a NIC again, without an
// address.
func (v *VM) PlugPrimary() {
	v.t.Check(v.Net.PlugTap())
	v.PlugNIC()
}

// PlugNIC is the second half of it: the tap is there, and the guest gets its NIC.
func (v *VM) PlugNIC() {
	var err error
	v.primary, err = v.Guest.Plug(v.t.Context(), v.nics[0])
	v.t.Check(err)
}
