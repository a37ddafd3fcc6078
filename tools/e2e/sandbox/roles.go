package sandbox

import "github.com/example/kubevirt-imds/tools/podnet/reexec"

// The roles in which this program is started again.
const (
	roleKeeper = "kubevirt-imds-e2e-keeper"
	roleInit   = "kubevirt-imds-e2e-init"
	roleEnter  = "kubevirt-imds-e2e-enter"
)

func init() {
	reexec.As(roleKeeper, keep)
	reexec.As(roleInit, initialize)
	reexec.As(roleEnter, enter)
}
