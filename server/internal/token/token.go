// Package token reads the ServiceAccount tokens that the kubelet projects into
// the pod, and always answers with what the files hold now.
package token

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Token is a JWT and the two bodies that answer a request for it, made once.
// Several requests share it: nobody may change it.
type Token struct {
	// JWT is the token itself, without a final line break.
	JWT []byte
	// JSON is a line with an object of the members "token" and
	// "expirationTimestamp" (RFC 3339, UTC).
	JSON []byte

	claims
}

func newToken(compact []byte) (*Token, error) {
	claims, err := parseJWT(compact)
	if err != nil {
		return nil, err
	}
	document, err := json.Marshal(struct {
		Token               string    `json:"token"`
		ExpirationTimestamp time.Time `json:"expirationTimestamp"`
	}{string(compact), claims.expires})
	if err != nil {
		return nil, err
	}
	return &Token{JWT: compact, JSON: append(document, '\n'), claims: claims}, nil
}

// isFor tells whether audience is one of the token's.
func (t *Token) isFor(audience string) bool {
	return slices.Contains(t.audiences, audience)
}

// clockSkew is how far the node's clock may be behind that of the API server,
// which stamps "nbf" with its own time: a token that the API server accepts is not
// kept back for that. Kubernetes allows its nodes as much: it dates the kubelet's
// certificates back by five minutes.
const clockSkew = 5 * time.Minute

// validAt returns an error if the token is not valid by now. RFC 7519 section
// 4.1.4: it is not valid on its expiry either.
func (t *Token) validAt(now time.Time) error {
	if !now.Before(t.expires) {
		return fmt.Errorf("the token expired at %s by the node's clock; the kubelet renews it, see the events of the pod", t.expires.Format(time.RFC3339))
	}
	if now.Add(clockSkew).Before(t.notBefore) {
		return fmt.Errorf("the token is not valid before %s, which is in the future by the node's clock; set the node's clock", t.notBefore.Format(time.RFC3339))
	}
	return nil
}
