package accidents

import (
	"context"
	"errors"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/hand"
)

// reboots are accidents that the guest's asking does not outlive: it begins to ask as soon as its network is up
// again, and what it loses then is counted.
var reboots = []tableRow{
	{"guest-rebooted", func(s *story) *measured { return s.measureBoot(s.reboot) }},
	{"guest-reset", func(s *story) *measured { return s.measureBoot(s.vm.Guest.Reset) }},
}

// reboot has the guest's own kernel begin it.
func (s *story) reboot(ctx context.Context) error {
	boots := s.vm.Guest.Hand.Boots()
	if _, err := s.vm.Guest.Hand.Run(ctx, hand.Run{Command: "reboot -f"}); err == nil {
		return errors.New("the guest has answered a command that reboots it")
	}
	return s.vm.Guest.AwaitBoot(ctx, boots)
}

// measureBoot measures a boot. The gap begins when the network is up.
func (s *story) measureBoot(boot func(context.Context) error) *measured {
	m := &measured{err: boot(s.t.Context()), hale: true}
	if m.err == nil {
		s.vm.Configure("eth0")
		asking := s.ask(tokenURL, usualPatience)
		s.letAsk(2 * time.Second)
		m.asked = asking.stop()
		m.lost = m.asked.Lost
	}
	m.leak = s.leaks()
	m.evidence = s.evidence()
	return m
}
