package stage

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// fsGroup is the pod's: 107, virt-launcher's.
const fsGroup = 107

// tokenLifetime is that of the tokens, which nobody checks here.
const tokenLifetime = time.Hour

// tokenVolume is the projected volume of the pod's tokens, which changes as a whole, as the kubelet's does: what
// the reader opens are links through the link ..data, which is replaced by renaming.
type tokenVolume struct {
	folder    string
	pod       string // the name, which is in each token
	audiences []string
	padding   int // bytes in each token that say nothing
	issued    int
}

// defaultAudience is that of the token that is there without being asked for.
const defaultAudience = "https://kubernetes.default.svc.cluster.local"

// path of the default token.
func (v *tokenVolume) path() string { return filepath.Join(v.folder, "token") }

// rotate puts new tokens in place of the present ones and returns the default one.
func (v *tokenVolume) rotate() (token string, err error) {
	v.issued++
	version := filepath.Join(v.folder, fmt.Sprintf("..version_%d", v.issued))
	token = v.issue(defaultAudience)
	files := map[string]string{"token": token}
	for i, audience := range v.audiences {
		files[fmt.Sprintf("audiences/%d", i)] = v.issue(audience)
	}
	for path, content := range files {
		if err := writeToken(filepath.Join(version, path), content); err != nil {
			return "", err
		}
	}
	data := filepath.Join(v.folder, "..data")
	previous, _ := os.Readlink(data) // none the first time
	if err := os.Symlink(filepath.Base(version), data+"_tmp"); err != nil {
		return "", err
	}
	if err := os.Rename(data+"_tmp", data); err != nil {
		return "", err
	}
	if previous != "" {
		return token, os.RemoveAll(filepath.Join(v.folder, previous))
	}
	for path := range files {
		top, _, _ := strings.Cut(path, "/")
		err := os.Symlink(filepath.Join("..data", top), filepath.Join(v.folder, top))
		if err != nil && !os.IsExist(err) {
			return "", err
		}
	}
	return token, nil
}

// writeToken writes a file as the kubelet does in a pod with an fsGroup.
func writeToken(path, content string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		return err
	}
	return os.Chown(path, 0, fsGroup)
}

func (v *tokenVolume) issue(audience string) string {
	claims := claims(fmt.Sprintf("%s-%d", v.pod, v.issued), audience, time.Now(), tokenLifetime)
	if v.padding > 0 {
		padding := make([]byte, v.padding*3/4)
		rand.Read(padding) // never fails: crypto/rand
		claims["padding"] = padding
	}
	return unsigned(claims)
}

// Token makes a JWT with an ID, issued at a time and for a while. Its signature is none, since the server has no key
// to check it with, but is another each time and as long as that of ES256: a mixture of two tokens is neither.
func Token(id, audience string, issued time.Time, lifetime time.Duration) string {
	return unsigned(claims(id, audience, issued, lifetime))
}

func claims(id, audience string, issued time.Time, lifetime time.Duration) map[string]any {
	return map[string]any{
		"aud": []string{audience},
		"exp": issued.Add(lifetime).Unix(),
		"iat": issued.Unix(),
		"nbf": issued.Unix(),
		"jti": id,
	}
}

func unsigned(claims map[string]any) string {
	encode := func(part any) string {
		text, _ := json.Marshal(part) // strings, numbers, bytes
		return base64.RawURLEncoding.EncodeToString(text)
	}
	signature := make([]byte, 64)
	rand.Read(signature)
	return encode(map[string]any{"alg": "ES256", "typ": "JWT"}) + "." + encode(claims) + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// TokenID is the claim jti of the token in an answer of /v1/token: the name of its pod, and which of the pod's tokens
// it is, from 1 on. An answer without a token has none.
func TokenID(answer string) string {
	var document struct{ Token string }
	json.Unmarshal([]byte(answer), &document)
	_, rest, _ := strings.Cut(document.Token, ".")
	claims, _, _ := strings.Cut(rest, ".")
	decoded, _ := base64.RawURLEncoding.DecodeString(claims)
	var claimed struct{ JTI string }
	json.Unmarshal(decoded, &claimed)
	return claimed.JTI
}
