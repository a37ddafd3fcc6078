package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"
)

// dialer connects as a guest: what comes from 127.0.0.1 is a probe to imds-server.
var dialer = net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}

// asker asks over one connection that it keeps, at the least cost to itself.
type asker struct {
	conn    net.Conn
	reader  *bufio.Reader
	request []byte
}

func newAsker(address, path string) (*asker, error) {
	conn, err := dialer.Dial("tcp4", address)
	if err != nil {
		return nil, err
	}
	return &asker{conn, bufio.NewReader(conn),
		fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n\r\n", path, address)}, nil
}

var contentLength = []byte("Content-Length: ")

// ask sends a request and returns the body of the answer, which must be of a 200.
func (a *asker) ask(keep bool) (body []byte, err error) {
	if _, err := a.conn.Write(a.request); err != nil {
		return nil, err
	}
	length, first := int64(0), true
	for {
		line, err := a.reader.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		if first && !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
			return nil, fmt.Errorf("answer %q", line)
		}
		if first = false; len(line) == 2 {
			break
		}
		if value, found := bytes.CutPrefix(line, contentLength); found {
			if length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64); err != nil {
				return nil, err
			}
		}
	}
	if length == 0 {
		return nil, errors.New("an answer without a length")
	}
	if keep {
		body = make([]byte, length)
		_, err = io.ReadFull(a.reader, body)
	} else {
		_, err = a.reader.Discard(int(length))
	}
	return body, err
}

// answer is that to one request over a connection of its own.
func answer(address, path string) ([]byte, error) {
	a, err := newAsker(address, path)
	if err != nil {
		return nil, err
	}
	defer a.conn.Close()
	return a.ask(true)
}

// client asks, and is closed after a measurement.
type client struct {
	ask   func() error
	close func()
}

// keptConnection is a client of a server without TLS.
func keptConnection(address, path string) (client, error) {
	a, err := newAsker(address, path)
	if err != nil {
		return client{}, err
	}
	return client{func() error { _, err := a.ask(false); return err }, func() { a.conn.Close() }}, nil
}

// load is what came of asking for a time.
type load struct {
	asked    int
	took     time.Duration
	answered []time.Duration // how long each answer took, sorted
	failed   error           // the first failure of each client
	cpu      time.Duration   // that the process used
}

// rate is the answers per second.
func (l load) rate() float64 { return float64(len(l.answered)) / l.took.Seconds() }

// cpuEach is the processor time for one answer, in µs.
func (l load) cpuEach() float64 { return float64(l.cpu.Microseconds()) / float64(len(l.answered)) }

// underLoad has several clients ask a process, each one request after the other.
func (p *process) underLoad(parallel int, duration time.Duration, newClient func() (client, error)) (l load, err error) {
	clients := make([]client, parallel)
	for i := range clients {
		if clients[i], err = newClient(); err != nil {
			return l, err
		}
		defer clients[i].close()
	}
	before, err := p.processorTime()
	if err != nil {
		return l, err
	}
	var asking sync.WaitGroup
	times, failures, asked := make([][]time.Duration, parallel), make([]error, parallel), make([]int, parallel)
	began := time.Now()
	for i, one := range clients {
		asking.Go(func() {
			for now := began; now.Sub(began) < duration; asked[i]++ {
				err := one.ask()
				then := now
				if now = time.Now(); err == nil {
					times[i] = append(times[i], now.Sub(then))
				} else if failures[i] == nil {
					failures[i] = err
				}
			}
		})
	}
	asking.Wait()
	l.took, l.answered, l.failed = time.Since(began), slices.Concat(times...), errors.Join(failures...)
	slices.Sort(l.answered)
	for _, many := range asked {
		l.asked += many
	}
	after, err := p.processorTime()
	l.cpu = after - before
	if err == nil && len(l.answered) == 0 {
		err = fmt.Errorf("no answer: %w; %s said: %s", l.failed, p.command.Path, p.log.last())
	}
	return l, err
}

// quantile of sorted times, in milliseconds.
func quantile(sorted []time.Duration, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return milliseconds(sorted[int(q*float64(len(sorted)-1))])
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
