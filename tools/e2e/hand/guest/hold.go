package main

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/example/kubevirt-imds/tools/e2e/hand"
)

const (
	dripPause = time.Second
	// openLimit is how long a connection may take to be made.
	openLimit = 10 * time.Second
	// openAtOnce is how many connections are being made at a time.
	openAtOnce = 100
)

// hold opens connections and keeps them until ctx ends.
func hold(ctx context.Context, h hand.Hold, begun func()) (hand.Held, error) {
	if h.Pause == 0 {
		h.Pause = dripPause
	}
	var mu sync.Mutex
	held := hand.Held{Failures: map[hand.Failure]int{}}
	opening := make(chan struct{}, openAtOnce)
	keep := func() {
		opening <- struct{}{}
		conn, err := (&net.Dialer{Timeout: openLimit}).DialContext(ctx, "tcp", h.Address)
		<-opening
		mu.Lock()
		if err != nil {
			if ctx.Err() == nil {
				held.Failures[classify(err)]++
			}
			mu.Unlock()
			return
		}
		held.Opened++
		mu.Unlock()
		if !linger(ctx, conn, h) {
			mu.Lock()
			held.Ended++
			mu.Unlock()
		}
	}
	begun()
	var all sync.WaitGroup
	for range h.Connections {
		all.Go(keep)
	}
	all.Wait()
	<-ctx.Done()
	return held, nil
}

// linger keeps a connection and drips into it. It returns true where the connection lasted until ctx ended.
func linger(ctx context.Context, conn net.Conn, h hand.Hold) bool {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var drip sync.WaitGroup
	defer drip.Wait()
	over := make(chan struct{})
	defer close(over)
	drip.Go(func() {
		pause := time.NewTicker(h.Pause)
		defer pause.Stop()
		for i := range len(h.Drip) {
			if _, err := conn.Write([]byte{h.Drip[i]}); err != nil {
				return
			}
			select {
			case <-pause.C:
			case <-over:
				return
			}
		}
	})
	// What the other side says, such as an answer after its time limit, is not of interest; that it ends is.
	buffer := make([]byte, 4096)
	for {
		if _, err := conn.Read(buffer); err != nil {
			return ctx.Err() != nil
		}
	}
}
