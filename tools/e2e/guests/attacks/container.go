package attacks

import (
	"strings"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/hand"
)

// containerAsks: a container behind the guest's NAT reaches the network, but not the service, whose answers last
// for one hop.
func containerAsks(s *scene) {
	container := s.StartContainer()
	s.Shell(container + "ping -c 1 -W 5 " + s.neighbour.Addr.String())
	ctx, cancel := s.patience()
	defer cancel()
	ran, err := s.Guest.Hand.Run(ctx, hand.Run{Command: container + "wget -T 3 -q -O - " + stage.MetadataURL + "/v1/token"})
	s.t.Check(err)
	if ran.Exit == 0 || strings.Contains(ran.Output, s.token) {
		s.answered("the container: %s", ran.Output)
	}
	s.serve()
}
