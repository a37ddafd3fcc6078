package pki

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"
)

// A certificate is good for its hosts and its use alone, with the authority that has signed it.
func TestCertificatesAreGoodForTheirUseAlone(t *testing.T) {
	authority, other := newAuthority(t), newAuthority(t)
	server, err := authority.Server(pkix.Name{CommonName: "kube-apiserver"}, "10.96.0.1", "kubernetes.default")
	if err != nil {
		t.Fatal(err)
	}
	client, err := authority.Client(pkix.Name{CommonName: "admin"})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		pair  Pair
		roots *Authority
		host  string
		usage x509.ExtKeyUsage
		good  bool
	}{
		"server by address":       {server, authority, "10.96.0.1", x509.ExtKeyUsageServerAuth, true},
		"server by name":          {server, authority, "kubernetes.default", x509.ExtKeyUsageServerAuth, true},
		"server of another host":  {server, authority, "127.0.0.1", x509.ExtKeyUsageServerAuth, false},
		"server as a client":      {server, authority, "", x509.ExtKeyUsageClientAuth, false},
		"client":                  {client, authority, "", x509.ExtKeyUsageClientAuth, true},
		"client as a server":      {client, authority, "", x509.ExtKeyUsageServerAuth, false},
		"client of another":       {client, other, "", x509.ExtKeyUsageClientAuth, false},
		"server signed by others": {server, other, "10.96.0.1", x509.ExtKeyUsageServerAuth, false},
	} {
		pair, err := tls.X509KeyPair(test.pair.Certificate, test.pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(test.roots.Certificate())
		_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: test.host, KeyUsages: []x509.ExtKeyUsage{test.usage}})
		if (err == nil) != test.good {
			t.Errorf("%s: %v, want it to be good: %t", name, err, test.good)
		}
	}
}

func newAuthority(t *testing.T) *Authority {
	t.Helper()
	authority, err := NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	return authority
}
