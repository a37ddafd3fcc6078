package main

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/example/kubevirt-imds/injector/internal/cabundle"
	"github.com/example/kubevirt-imds/injector/internal/certificate"
	"github.com/example/kubevirt-imds/injector/selfsigned"
)

// webhookName is the name of the webhook's Service and of its
// MutatingWebhookConfiguration.
const webhookName = "imds-webhook"

// selfSignedLifetime is for a certificate that dies with the process.
const selfSignedLifetime = 10 * 365 * 24 * time.Hour

// publication makes the API server trust the CA that this process made.
type publication struct {
	publisher *cabundle.Publisher
	ca        []byte
	wait      func(attempt int) <-chan time.Time
}

// selfSign makes a CA and a certificate for the webhook's Service in the pod's own
// namespace.
func selfSign(pod podEnvironment, timing timing, log *slog.Logger) (*certificate.Source, *publication, error) {
	publisher, err := cabundle.NewPublisher(webhookName, pod.getenv, pod.serviceAccountFolder, log)
	if err != nil {
		return nil, nil, err
	}
	host := webhookName + "." + publisher.Namespace() + ".svc"
	bundle, err := selfsigned.Issue(selfSignedLifetime, host, host+".cluster.local")
	if err != nil {
		return nil, nil, err
	}
	pair, err := tls.X509KeyPair(bundle.Certificate, bundle.Key)
	if err != nil {
		return nil, nil, err
	}
	return certificate.Fixed(pair), &publication{publisher, bundle.CA, timing.retry}, nil
}

// run publishes the CA and returns when it is published, or ctx ends. A nil
// publication is somebody else's matter.
func (p *publication) run(ctx context.Context) {
	if p != nil {
		p.publisher.Publish(ctx, p.ca, p.wait)
	}
}

// problem says why the API server does not trust the CA yet; nil once it does.
func (p *publication) problem() error {
	if p == nil {
		return nil
	}
	return p.publisher.Problem()
}
