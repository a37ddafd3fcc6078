package token

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
)

// claims is what the server needs to know of a JWT.
type claims struct {
	expires   time.Time
	notBefore time.Time // zero if the token does not say
	audiences []string
}

// latestDate is the last second that RFC 3339 can write: 9999-12-31T23:59:59Z.
const latestDate = 253402300799

// parseJWT reads the compact serialization of a signed JWT (RFC 7519, RFC 7515
// section 3.1). It does not check the signature: the server has no key, the
// kubelet wrote the file, and whoever is shown the token checks it anyway.
//
// The errors quote nothing of the token.
func parseJWT(compact []byte) (claims, error) {
	parts := bytes.Split(compact, []byte("."))
	if len(parts) != 3 {
		return claims{}, errors.New("it is not three parts separated by dots")
	}
	decoded := make([][]byte, len(parts))
	for i, part := range parts {
		var err error
		if decoded[i], err = decodeBase64URL(part); err != nil {
			return claims{}, err
		}
	}
	return parsePayload(decoded[1])
}

// decodeBase64URL decodes a part of a JWT: base64url without padding (RFC 7515
// section 2). The package base64 skips line breaks, a JWT has none.
func decodeBase64URL(part []byte) ([]byte, error) {
	if len(part) == 0 {
		return nil, errors.New("one of its three parts is empty")
	}
	if bytes.ContainsAny(part, "\r\n") {
		return nil, errors.New("there is a line break in it")
	}
	decoded, err := base64.RawURLEncoding.Strict().AppendDecode(nil, part)
	if err != nil {
		return nil, errors.New("one of its three parts is not base64url")
	}
	return decoded, nil
}

// parsePayload reads the claims. The names are compared exactly, which decoding
// into a struct would not do.
func parsePayload(payload []byte) (claims, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(payload, &members); err != nil {
		return claims{}, errors.New("its payload is not a JSON object")
	}
	expires, err := parseDate(members, "exp")
	if err != nil {
		return claims{}, err
	}
	var notBefore time.Time
	if _, present := members["nbf"]; present {
		if notBefore, err = parseDate(members, "nbf"); err != nil {
			return claims{}, err
		}
	}
	audiences, err := parseAudiences(members["aud"])
	if err != nil {
		return claims{}, err
	}
	return claims{expires: expires, notBefore: notBefore, audiences: audiences}, nil
}

// parseDate reads a claim that is a NumericDate (RFC 7519 section 2): seconds since
// 1970, with a fraction perhaps, which is cut off so that no token is said to live
// longer than it does.
func parseDate(members map[string]json.RawMessage, name string) (time.Time, error) {
	var seconds *float64
	if json.Unmarshal(members[name], &seconds) != nil || seconds == nil {
		return time.Time{}, fmt.Errorf("its payload has no %q that is a number", name)
	}
	if *seconds < 0 || *seconds > latestDate {
		return time.Time{}, fmt.Errorf("the %q of its payload is not between the years 1970 and 9999", name)
	}
	return time.Unix(int64(math.Floor(*seconds)), 0).UTC(), nil
}

// parseAudiences reads the claim "aud" (RFC 7519 section 4.1.3): a string, or an
// array of strings.
func parseAudiences(member json.RawMessage) ([]string, error) {
	var one *string
	if json.Unmarshal(member, &one) == nil && one != nil {
		return []string{*one}, nil
	}
	var many []*string
	if json.Unmarshal(member, &many) != nil || len(many) == 0 {
		return nil, errors.New(`its payload has no "aud" that is a string or an array of strings`)
	}
	audiences := make([]string, len(many))
	for i, audience := range many {
		if audience == nil {
			return nil, errors.New(`the "aud" of its payload has a member that is not a string`)
		}
		audiences[i] = *audience
	}
	return audiences, nil
}
