package stage

import "github.com/example/kubevirt-imds/tools/e2e/qemu"

// AddNIC gives the VM, before it boots, a NIC whose other end the check has made itself, such as passt's socket.
func (v *VM) AddNIC(nic qemu.NIC) { v.nics = append(v.nics, nic) }

// UnplugPrimary is NIC hot-unplug of the pod network on a running guest, as KubeVirt does it: the NIC leaves the guest,
// and virt-handler deletes the tap.
func (v *VM) UnplugPrimary() {
	Check(v.t, v.Guest.Unplug(v.t.Context(), v.primary))
	Check(v.t, v.Net.UnplugTap())
}

// PlugNIC is NIC hot-plug, once virt-handler has made a new tap: the guest has a NIC again, without an address.
func (v *VM) PlugNIC() {
	var err error
	v.primary, err = v.Guest.Plug(v.t.Context(), v.nics[0])
	Check(v.t, err)
}
