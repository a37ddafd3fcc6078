package qemu

import (
	"context"
	"fmt"
)

// Pause stops the guest's processor and its clock.
func (g *Guest) Pause(ctx context.Context) error { return g.does(ctx, "stop") }

// Resume has a paused guest go on.
func (g *Guest) Resume(ctx context.Context) error { return g.does(ctx, "cont") }

// Reset has the guest boot anew as the reset button does, without a word to it, and returns when its hand answers.
// For a reboot that the guest itself begins there is the shell command "reboot -f", and AwaitBoot of the hand.
func (g *Guest) Reset(ctx context.Context) error {
	boots := g.Hand.Boots()
	if err := g.does(ctx, "system_reset"); err != nil {
		return err
	}
	return g.AwaitBoot(ctx, boots)
}

// AwaitBoot returns when the guest has booted more often than that. It fails where that takes too long, or QEMU
// ends.
func (g *Guest) AwaitBoot(ctx context.Context, boots int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, fmt.Errorf("the guest has not booted within %s", bootLimit))
	defer cancel()
	return g.during(ctx, func(ctx context.Context) error { return g.Hand.AwaitBoot(ctx, boots) })
}

func (g *Guest) does(ctx context.Context, command string) error {
	_, err := g.monitor.execute(ctx, command, nil)
	return err
}

// Events are those that QEMU has told since it was started, such as RESET, STOP and RESUME.
func (g *Guest) Events() []Event {
	g.monitor.mu.Lock()
	defer g.monitor.mu.Unlock()
	return append([]Event{}, g.monitor.events...)
}
