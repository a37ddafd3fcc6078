package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
)

// kubeconfig is the part of k8s.io/client-go/tools/clientcmd/api/v1.Config that is read here.
type kubeconfig struct {
	Clusters []struct {
		Cluster struct {
			Server    string `json:"server"`
			Authority []byte `json:"certificate-authority-data"`
		} `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		User struct {
			Certificate []byte `json:"client-certificate-data"`
			Key         []byte `json:"client-key-data"`
		} `json:"user"`
	} `json:"users"`
}

// Open returns a client with the address and the rights of a kubeconfig, as "kubectl config view --raw --minify
// --flatten --output=json" writes it. Its user must have a client certificate, as in the kubeconfigs of kind and
// of kubeadm. dial connects; nil: from this process's own network.
func Open(config []byte, dial func(ctx context.Context, network, address string) (net.Conn, error)) (*Client, error) {
	var c kubeconfig
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	if len(c.Clusters) != 1 || len(c.Users) != 1 {
		return nil, fmt.Errorf("kubeconfig: %d clusters and %d users, want one of each: set current-context", len(c.Clusters), len(c.Users))
	}
	cluster, user := c.Clusters[0].Cluster, c.Users[0].User
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(cluster.Authority) {
		return nil, errors.New("kubeconfig: the cluster has no certificate-authority-data")
	}
	pair, err := tls.X509KeyPair(user.Certificate, user.Key)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: the user's client certificate (other ways to log in are not known here): %w", err)
	}
	return &Client{server: cluster.Server, http: &http.Client{Transport: &http.Transport{
		DialContext:     dial,
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}},
		// A transport with a TLS configuration of its own speaks HTTP/2 only when told.
		ForceAttemptHTTP2: true,
	}}}, nil
}
