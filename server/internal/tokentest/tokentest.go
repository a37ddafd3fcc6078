// Package tokentest makes tokens for tests, and puts them into a folder the way
// the kubelet does.
package tokentest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// JWT returns a token of about the size of a real one. Its signature is not one.
func JWT(expires time.Time, audiences ...string) string {
	payload, err := json.Marshal(map[string]any{
		"aud": audiences,
		"exp": expires.Unix(),
		"iss": "https://kubernetes.default.svc.cluster.local",
		"kubernetes.io": map[string]any{
			"namespace":      "tenant",
			"pod":            map[string]string{"name": "virt-launcher-fedora-x7k2p", "uid": "0b6f5a1e-6a0f-4b8e-9d6b-1f0e7d9c2a34"},
			"serviceaccount": map[string]string{"name": "default", "uid": "5d1c7e0a-2f3b-4c8d-8e9f-a0b1c2d3e4f5"},
		},
		"sub": "system:serviceaccount:tenant:default",
	})
	if err != nil {
		panic(err)
	}
	return Encode(`{"alg":"RS256","kid":"c2lnbmluZy1rZXktb2YtdGhlLWNsdXN0ZXI"}`, string(payload), strings.Repeat("signature", 28))
}

// Encode returns the compact serialization of a JWT with these parts.
func Encode(header, payload, signature string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(header)) + "." + encode([]byte(payload)) + "." + encode([]byte(signature))
}

// Volume is a projected volume: its files are symbolic links into a folder that
// is swapped as a whole.
type Volume struct {
	// Dir is where the volume is mounted.
	Dir string

	swaps int
}

// NewVolume returns a volume with these files, by their path in the volume.
func NewVolume(t testing.TB, files map[string]string) *Volume {
	t.Helper()
	v := &Volume{Dir: t.TempDir()}
	v.Swap(t, files)
	return v
}

// TokenPath is the path of the file "token".
func (v *Volume) TokenPath() string {
	return filepath.Join(v.Dir, "token")
}

// Swap replaces all files at once. When it returns, the new ones are in place.
func (v *Volume) Swap(t testing.TB, files map[string]string) {
	t.Helper()
	previous, _ := os.Readlink(filepath.Join(v.Dir, "..data"))
	v.swaps++
	name := fmt.Sprintf("..2026_01_01_00_00_00.%d", v.swaps)
	for path, content := range files {
		file := filepath.Join(v.Dir, name, path)
		must(t, os.MkdirAll(filepath.Dir(file), 0o755))
		must(t, os.WriteFile(file, []byte(content), 0o644))

		top, _, _ := strings.Cut(path, "/")
		if err := os.Symlink(filepath.Join("..data", top), filepath.Join(v.Dir, top)); !os.IsExist(err) {
			must(t, err)
		}
	}
	must(t, os.MkdirAll(filepath.Join(v.Dir, name), 0o755))
	must(t, os.Symlink(name, filepath.Join(v.Dir, "..data_tmp")))
	must(t, os.Rename(filepath.Join(v.Dir, "..data_tmp"), filepath.Join(v.Dir, "..data")))
	if previous != "" {
		must(t, os.RemoveAll(filepath.Join(v.Dir, previous)))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
