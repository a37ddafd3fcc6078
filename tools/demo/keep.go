package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// refreshPace is how often the tokens are renewed: well before an hour is over,
// as the kubelet does.
const refreshPace = 45 * time.Minute

// keep leaves everything running until ctx ends.
func (d *demo) keep(ctx context.Context) error {
	d.progress.title("\nIt runs until Ctrl-C. Look around from another terminal:")
	for _, s := range d.scenarios {
		d.progress.title(fmt.Sprintf("\n%s binding", s.binding))
		for _, look := range []struct {
			from    string
			network *podnet.Namespace
			command string
		}{
			{"guest", s.network.Guest, "curl -s " + metadataURL + "/v1/token"},
			{"pod", s.network.Pod, "curl -s " + metadataURL + "/v1/identity"},
			// On the link, as its routes do not say where to.
			{"neighbour", s.network.Neighbour, "curl -m 1 --interface " + podnet.NeighbourInterface + " " + metadataURL + "/v1/token"},
		} {
			d.progress.title(fmt.Sprintf("  %-12s %s %s", look.from, enter(look.network.Path()), look.command))
		}
	}
	d.progress.title(fmt.Sprintf("\n  %-12s %s", "logs", d.handover.logs()))
	refresh := time.NewTicker(refreshPace)
	defer refresh.Stop()
	health := time.NewTicker(time.Second)
	defer health.Stop()
	for {
		select {
		case <-ctx.Done():
			d.progress.title("")
			return nil
		case <-refresh.C:
			for _, s := range d.scenarios {
				if err := s.sidecars.Refresh(); err != nil {
					return err
				}
			}
		case <-health.C:
			for _, s := range d.scenarios {
				if err := s.sidecars.Check(); err != nil {
					return err
				}
			}
		}
	}
}

// enter is the command that enters a network namespace from outside: as root,
// or as the user whose user namespace it belongs to.
func enter(network string) string {
	if runsAs() == "root" {
		return "sudo nsenter --net=" + network
	}
	self, err := os.Readlink("/proc/self")
	if err != nil {
		self = "PID"
	}
	return "nsenter --user --preserve-credentials --target " + self + " --net=" + network
}
