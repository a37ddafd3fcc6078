package listen

import (
	"context"
	"log/slog"
	"net"
)

// FollowAll follows several sockets, each by itself: what one of them waits for
// keeps no other from being served. It returns when all have ended: nil when ctx
// has ended, otherwise the first error, after which the others end too. Serve is
// called for several listeners at once.
func FollowAll(ctx context.Context, sockets []Socket, log *slog.Logger, serve func(net.Listener) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error)
	for _, socket := range sockets {
		go func() { ended <- Follow(ctx, socket, log, serve) }()
	}
	var first error
	for range sockets {
		if err := <-ended; err != nil && first == nil {
			first = err
			cancel()
		}
	}
	return first
}
