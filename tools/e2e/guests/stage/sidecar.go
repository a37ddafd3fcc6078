package stage

import "github.com/example/kubevirt-imds/tools/podnet/kubelet"

// Sidecar is one of the project's containers, as the kubelet runs it.
type Sidecar = kubelet.Sidecar
