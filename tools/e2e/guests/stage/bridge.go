package stage

// RemoveBridge deletes the pod network's bridge, as an accident would.
func (v *VM) RemoveBridge() { Check(v.t, v.Net.RemoveBridge()) }

// RestoreBridge makes it anew, with its ports, and a DHCP server on it: the old one heard the old bridge alone.
func (v *VM) RestoreBridge() {
	Check(v.t, v.Net.RestoreBridge())
	if v.primaryDHCP != nil {
		v.primaryDHCP()
	}
}
