package cluster

import (
	"strings"

	"github.com/example/kubevirt-imds/tools/podnet/cgroup"
)

// Container finds the cgroup of a running container by the container's ID, such as
// the API has in the status of a pod: containerd://0123abcd.
func (c *Cluster) Container(id string) (*cgroup.Group, error) {
	return cgroup.Find(c.name, strings.TrimPrefix(id, "containerd://"))
}
