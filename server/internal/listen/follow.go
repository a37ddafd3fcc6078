// Package listen keeps a listening socket on an address and a network device
// that come and go. Neither has to exist when the server starts, and a device
// that was deleted and made anew under its old name is listened on again.
package listen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
)

// Follow listens on socket whenever its address and its device exist, and calls
// serve with each listener that it opens. Serve has to return once the listener
// is closed.
//
// Follow returns nil when ctx has ended, and an error if waiting for a change of
// the network cannot help. Either way the last listener is closed then, and
// serve has returned.
func Follow(ctx context.Context, socket Socket, log *slog.Logger, serve func(net.Listener) error) error {
	events, err := subscribe()
	if err != nil {
		return fmt.Errorf("cannot follow the network devices: %w", err)
	}
	defer events.close()
	following, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	changed := make(chan struct{}, 1)
	go func() { cancel(forward(events, changed)) }()

	f := follower{socket: socket, log: log, serve: serve, changed: changed}
	for following.Err() == nil {
		if err := f.listenAndServe(following); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("cannot follow the network devices: %w", context.Cause(following))
}

// forward sends once for each change, or for several at once, until the events
// end, and returns why they did.
func forward(events *events, changed chan<- struct{}) error {
	for {
		if err := events.next(); err != nil {
			return err
		}
		select {
		case changed <- struct{}{}:
		default: // an earlier change was not looked at yet
		}
	}
}

type follower struct {
	socket  Socket
	log     *slog.Logger
	serve   func(net.Listener) error
	changed <-chan struct{}
}

// listenAndServe opens one listener and serves it, until it is of no more use or
// ctx ends.
func (f *follower) listenAndServe(ctx context.Context) error {
	listener, index, err := f.waitToListen(ctx)
	if ctx.Err() != nil {
		if listener != nil {
			listener.Close()
		}
		return nil
	}
	if err != nil {
		return err
	}
	f.log.Info("listening", "address", f.socket.Addr, "device", f.socket.Device)
	return f.serveUntilReplaced(ctx, listener, index)
}

// waitToListen tries to listen, again at each change, until it can or ctx ends.
func (f *follower) waitToListen(ctx context.Context) (net.Listener, int, error) {
	var waitingFor string
	for {
		listener, index, err := f.socket.listen(ctx)
		missing, ok := errors.AsType[*missingError](err)
		if !ok {
			return listener, index, err
		}
		if waitingFor != missing.what {
			waitingFor = missing.what
			f.log.Info("waiting", "for", waitingFor, "address", f.socket.Addr)
		}
		select {
		case <-f.changed:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// serveUntilReplaced serves until the device has another index or is gone: the
// socket is bound to the index, and would never see a new device of that name.
// An address that goes and comes back needs nothing, since the kernel keeps the
// socket.
func (f *follower) serveUntilReplaced(ctx context.Context, listener net.Listener, index int) error {
	served := make(chan error, 1)
	go func() {
		served <- f.serve(listener)
		close(served)
	}()
	defer func() {
		listener.Close()
		<-served
	}()
	for {
		select {
		case err := <-served:
			return fmt.Errorf("cannot serve %s: %w", f.socket.Addr, err)
		case <-ctx.Done():
			return nil
		case <-f.changed:
			if current, err := f.socket.deviceIndex(); err != nil || current != index {
				return nil // what is missing or wrong shows when it listens again
			}
		}
	}
}
