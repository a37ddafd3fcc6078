// Package issuer plays the part of the API server that signs ServiceAccount
// tokens (authentication.k8s.io/v1 TokenRequest), and the part of whoever
// checks them. Its key lives as long as the process.
package issuer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// URL is the issuer of a cluster that does not name another, and the audience
// of its own API server.
const URL = "https://kubernetes.default.svc.cluster.local"

// Claims are those of a ServiceAccount token that is bound to a pod.
type Claims struct {
	Audience   []string   `json:"aud"`
	Expires    int64      `json:"exp"` // Unix seconds, as IssuedAt and NotBefore
	IssuedAt   int64      `json:"iat"`
	Issuer     string     `json:"iss"`
	ID         string     `json:"jti"`
	Kubernetes Kubernetes `json:"kubernetes.io"`
	NotBefore  int64      `json:"nbf"`
	Subject    string     `json:"sub"`
}

// Kubernetes are the claims of that name.
type Kubernetes struct {
	Namespace      string    `json:"namespace"`
	Node           Reference `json:"node"`
	Pod            Reference `json:"pod"`
	ServiceAccount Reference `json:"serviceaccount"`
}

// Reference is an object that a token is bound to.
type Reference struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// Header is the JOSE header.
type Header struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
}

// algorithm is ECDSA on P-256 with SHA-256, RFC 7518 section 3.4.
const algorithm = "ES256"

// signatureHalf is the length of each of a signature's two numbers, in bytes.
const signatureHalf = 32

// Issuer signs tokens.
type Issuer struct {
	key   *ecdsa.PrivateKey
	keyID string
}

// New makes an issuer with a fresh key.
func New() (*Issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	public, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(public)
	return &Issuer{key: key, keyID: base64.RawURLEncoding.EncodeToString(sum[:])}, nil
}

// Issue signs a token for a ServiceAccount of a pod on a node. No audience
// means the API server's own.
func (i *Issuer) Issue(k Kubernetes, audience string, lifetime time.Duration) (string, error) {
	if audience == "" {
		audience = URL
	}
	now := time.Now()
	payload, err := json.Marshal(Claims{
		Audience:   []string{audience},
		Expires:    now.Add(lifetime).Unix(),
		IssuedAt:   now.Unix(),
		Issuer:     URL,
		ID:         rand.Text(),
		Kubernetes: k,
		NotBefore:  now.Unix(),
		Subject:    "system:serviceaccount:" + k.Namespace + ":" + k.ServiceAccount.Name,
	})
	if err != nil {
		return "", err
	}
	header, err := json.Marshal(Header{Algorithm: algorithm, KeyID: i.keyID})
	if err != nil {
		return "", err
	}
	signed := encode(header) + "." + encode(payload)
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, digest[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 2*signatureHalf)
	r.FillBytes(signature[:signatureHalf])
	s.FillBytes(signature[signatureHalf:])
	return signed + "." + encode(signature), nil
}

// Verify checks a token's signature with the public key, its issuer and its
// times, and returns what it claims. Errors do not hold the token.
func (i *Issuer) Verify(token string) (Header, Claims, error) {
	var header Header
	var claims Claims
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return header, claims, fmt.Errorf("a JWT has 3 parts, this one %d", len(parts))
	}
	if err := decode(parts[0], &header); err != nil {
		return header, claims, fmt.Errorf("header: %w", err)
	}
	if header.Algorithm != algorithm || header.KeyID != i.keyID {
		return header, claims, fmt.Errorf("signed with %s and key %s, want %s and %s",
			header.Algorithm, header.KeyID, algorithm, i.keyID)
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(signature) != 2*signatureHalf {
		return header, claims, errors.New("the signature is no pair of 32-byte numbers")
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	r := new(big.Int).SetBytes(signature[:signatureHalf])
	s := new(big.Int).SetBytes(signature[signatureHalf:])
	if !ecdsa.Verify(&i.key.PublicKey, digest[:], r, s) {
		return header, claims, errors.New("the signature is wrong")
	}
	if err := decode(parts[1], &claims); err != nil {
		return header, claims, fmt.Errorf("claims: %w", err)
	}
	now := time.Now().Unix()
	switch {
	case claims.Issuer != URL:
		return header, claims, fmt.Errorf("issued by %q, want %s", claims.Issuer, URL)
	case now < claims.NotBefore || now >= claims.Expires:
		return header, claims, fmt.Errorf("valid from %d until %d, now is %d", claims.NotBefore, claims.Expires, now)
	}
	return header, claims, nil
}

func encode(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

func decode(part string, to any) error {
	data, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, to)
}
