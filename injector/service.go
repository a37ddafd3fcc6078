package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/example/kubevirt-imds/injector/internal/patchset"
	"github.com/example/kubevirt-imds/injector/internal/review"
)

// timing is how long things may take.
type timing struct {
	arrival    time.Duration                       // of a request
	answer     time.Duration                       // until the client has taken it
	idle       time.Duration                       // of a connection without a request
	withdrawal func() <-chan time.Time             // after the word to end: the API server may still send requests here
	shutdown   time.Duration                       // of requests under way after that
	publish    func(failures int) <-chan time.Time // between two looks at whether the CA is published
}

var productionTiming = timing{
	// Who waits for the place of a body that is sent slowly has the 5 s that the manifests give the webhook.
	arrival: 2 * time.Second,
	answer:  4 * time.Second,
	idle:    2 * time.Minute,
	// Together shorter than a pod's grace period of 30 s. The image has no shell for a preStop hook.
	withdrawal: func() <-chan time.Time { return time.After(5 * time.Second) },
	shutdown:   15 * time.Second,
	publish:    func(failures int) <-chan time.Time { return time.After(publishPause(failures)) },
}

// publishPause is 5 s; after failures it doubles from 250 ms to that.
func publishPause(failures int) time.Duration {
	const usual = 5 * time.Second
	if failures == 0 {
		return usual
	}
	return min(250*time.Millisecond<<min(failures-1, 5), usual)
}

const (
	maxHeaderBytes       = 2 << 10  // several times what the API server sends
	maxReceiveBuffer     = 64 << 10 // what a stream may send before anybody reads: a client does before it knows better (RFC 9113, 6.9.2)
	maxStreams           = 16       // the API server opens one more connection when one has no stream left
	maxFrame             = 16 << 10 // each connection keeps as much
	maxConnections       = 256
	maxHealthConnections = 32
)

// service is the webhook with its two listeners open.
type service struct {
	certificates                    *certificateSource
	publisher                       *publisher
	timing                          timing
	log, strangers                  *slog.Logger
	webhook, health                 *http.Server
	webhookListener, healthListener net.Listener
	draining                        atomic.Bool
}

// listen opens the certificate, the patches and both listeners.
func listen(opts options, pod podEnvironment, timing timing, log, strangers *slog.Logger) (*service, error) {
	certificates, publisher, err := openCertificates(opts, pod, timing, log)
	if err != nil {
		return nil, err
	}
	patches, err := patchset.Open(opts.patches, opts.serverImage)
	if err != nil {
		return nil, err
	}
	log.Info("patches read", "files", patches.Files, "hash", patches.Hash, "leftOut", patches.LeftOut, "wiredBy", patches.WiredBy, "serverImage", opts.serverImage, "version", buildVersion())
	reviews := http.NewServeMux()
	admission, reviewer := newAdmission(log, strangers, timing.arrival), review.New(patches, buildVersion(), log)
	for path, decide := range map[string]review.Func{
		"/mutate-pod":                    reviewer.Pod,
		"/mutate-virtualmachine":         reviewer.VirtualMachine,
		"/mutate-virtualmachineinstance": reviewer.Instance,
		"/repair-virtualmachine":         reviewer.Repair(reviewer.VirtualMachine),
		"/repair-virtualmachineinstance": reviewer.Repair(reviewer.Instance),
	} {
		reviews.Handle("POST "+path, admission.handler(decide))
	}
	health := http.NewServeMux()

	s := &service{certificates: certificates, publisher: publisher, timing: timing, log: log, strangers: strangers}
	health.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "OK") })
	health.HandleFunc("GET /readyz", s.ready)
	health.HandleFunc("GET /metrics", s.metrics(admission.metrics, patches.Hash))
	s.health = s.newServer(health, maxHealthConnections)
	s.webhook = s.newServer(s.closing(admission.bounded(reviews)), maxConnections)
	// For a connection that ends with open streams net/http starts the timer of idle ones anew, and keeps for it what
	// they hold (closeStream in h2_bundle.go). So there is none: connections are bounded, and the kernel finds dead ones.
	s.webhook.IdleTimeout = -1
	s.webhook.HTTP2 = &http.HTTP2Config{
		// Bodies that wait to be read hold up no other stream.
		MaxReceiveBufferPerConnection: maxStreams * maxReceiveBuffer,
		MaxReceiveBufferPerStream:     maxReceiveBuffer,
		MaxConcurrentStreams:          maxStreams,
		MaxReadFrameSize:              maxFrame,
		WriteByteTimeout:              timing.answer,
	}
	s.webhook.TLSConfig = &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: certificates.get,
		// A resumed session would go on with a certificate that was renewed.
		SessionTicketsDisabled: true,
	}

	if s.webhookListener, err = net.Listen("tcp", opts.listen); err != nil {
		return nil, fmt.Errorf("--listen %s: %w", opts.listen, err)
	}
	if s.healthListener, err = net.Listen("tcp", opts.healthListen); err != nil {
		s.webhookListener.Close()
		return nil, fmt.Errorf("--health-listen %s: %w", opts.healthListen, err)
	}
	log.Info("listening", "webhook", s.webhookListener.Addr().String(), "health", s.healthListener.Addr().String())
	return s, nil
}

// closing has each answer end its connection while the service drains: no request meets its end.
func (s *service) closing(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.draining.Load() {
			w.Header().Set("Connection", "close") // in HTTP/2 net/http makes a GOAWAY of it
		}
		handler.ServeHTTP(w, r)
	})
}

// ready says whether the API server can be sent here. A renewed certificate that is not in use is named, but
// does not make a replica unready: all of them would be gone at once.
func (s *service) ready(w http.ResponseWriter, _ *http.Request) {
	certificate := s.certificates.look(time.Now())
	if err := s.notReady(certificate); err != nil {
		http.Error(w, errors.Join(err, certificate.unused).Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "OK")
	if certificate.unused != nil {
		fmt.Fprintf(w, "the last good certificate stays in use: %v\n", certificate.unused)
	}
	if certificate.soon != nil {
		fmt.Fprintln(w, certificate.soon)
	}
}

// notReady says why the API server cannot be sent here.
func (s *service) notReady(certificate condition) error {
	if s.draining.Load() {
		return errors.New("draining")
	}
	return errors.Join(certificate.refused, s.publisher.status())
}

// newServer returns a server whose connections are bounded.
func (s *service) newServer(handler http.Handler, mostConnections int) *http.Server {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: s.timing.arrival,
		ReadTimeout:       s.timing.arrival,
		WriteTimeout:      s.timing.answer,
		IdleTimeout:       s.timing.idle,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.strangers.Handler(), slog.LevelWarn),
	}
	boundConnections(server, mostConnections)
	return server
}

// run serves until ctx ends, then drains.
func (s *service) run(ctx context.Context) error {
	failed := make(chan error, 2)
	go func() { failed <- s.webhook.ServeTLS(meteredListener{s.webhookListener, new(meter)}, "", "") }()
	go func() { failed <- s.health.Serve(s.healthListener) }()
	defer s.health.Close()
	defer s.webhook.Close()
	publishing, giveUp := context.WithCancel(ctx)
	var publisher sync.WaitGroup
	publisher.Go(func() { s.publisher.run(publishing) })
	defer publisher.Wait()
	defer giveUp()

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	s.draining.Store(true)
	s.log.Info("draining: not ready any more, still serving")
	select {
	case err := <-failed:
		return err
	case <-s.timing.withdrawal():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.timing.shutdown)
	defer cancel()
	s.webhookListener.Close()
	s.log.Info("no new connections any more, waiting for requests under way")
	if err := s.webhook.Shutdown(ctx); errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("requests were still under way %s after the listener closed", s.timing.shutdown)
	} else if err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	s.log.Info("drained")
	return nil
}
