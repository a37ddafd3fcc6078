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

// configurationName is the name of the webhook's MutatingWebhookConfiguration.
const configurationName = "imds-webhook"

// selfSignedLifetime is for a certificate that dies with the process.
const selfSignedLifetime = 10 * 365 * 24 * time.Hour

// publication makes the API server trust the CA that this process made.
type publication struct {
	publisher *cabundle.Publisher
	ca        []byte
	pause     func(failures int) <-chan time.Time
}

// selfSign makes a CA and a certificate for the DNS name of the webhook's Service.
func selfSign(service string, pod podEnvironment, timing timing, log *slog.Logger) (*certificate.Source, *publication, error) {
	publisher, err := cabundle.NewPublisher(configurationName, pod.getenv, pod.serviceAccountFolder, log)
	if err != nil {
		return nil, nil, err
	}
	bundle, err := selfsigned.Issue(selfSignedLifetime, service, service+".cluster.local")
	if err != nil {
		return nil, nil, err
	}
	pair, err := tls.X509KeyPair(bundle.Certificate, bundle.Key)
	if err != nil {
		return nil, nil, err
	}
	certificates, err := certificate.Fixed(pair, service, log)
	return certificates, &publication{publisher, bundle.CA, timing.publish}, err
}

// run keeps the CA published until ctx ends. A nil publication does nothing:
// cert-manager or the operator publishes the CA.
func (p *publication) run(ctx context.Context) {
	if p != nil {
		p.publisher.Keep(ctx, p.ca, p.pause)
	}
}

// problem says why the API server does not trust the CA; nil while it does.
func (p *publication) problem() error {
	if p == nil {
		return nil
	}
	return p.publisher.Problem()
}
