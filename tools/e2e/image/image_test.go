package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

var config = Config{User: "65532:65532", Env: []string{"PATH=/bin"}, Entrypoint: []string{"/bin/app"}, Cmd: []string{"serve"}}

// tree is a small root file system, last changed at the given time.
func tree(changed time.Time) fstest.MapFS {
	return fstest.MapFS{
		"bin":     {Mode: fs.ModeDir | 0o755, ModTime: changed},
		"bin/app": {Data: []byte("program"), Mode: 0o755, ModTime: changed},
		"bin/sh":  {Data: []byte("app"), Mode: fs.ModeSymlink | 0o777, ModTime: changed},
		"tmp":     {Mode: fs.ModeDir | fs.ModeSticky | 0o777, ModTime: changed},
	}
}

func TestSameTreeGivesSameBytes(t *testing.T) {
	early, earlyDigest := write(t, tree(time.Unix(1, 0)))
	late, lateDigest := write(t, tree(time.Unix(2_000_000_000, 0)))
	if !bytes.Equal(early, late) {
		t.Error("two images of one tree differ in bytes")
	}
	if earlyDigest != lateDigest {
		t.Errorf("two images of one tree have the digests %s and %s", earlyDigest, lateDigest)
	}
}

// The digest is written down, so that a change of this package, or of Go's tar and JSON, that would change
// every image does not go unnoticed.
func TestDigestIsKnown(t *testing.T) {
	known := map[string]string{
		"amd64": "sha256:cd4a5ce859fecb4365f85c5c69dde89adc234f2fb583b813ccc5496c2a42f29b",
		"arm64": "sha256:13b1bb055e95b012785867265eff727303dec71b7b3e4083a9947994cb4b98a2",
	}
	want, ok := known[runtime.GOARCH]
	if !ok {
		t.Fatalf("no known digest for %s: add it", runtime.GOARCH)
	}
	if _, got := write(t, tree(time.Now())); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
}

func TestEveryInputChangesTheDigest(t *testing.T) {
	_, original := write(t, tree(time.Time{}))
	changes := map[string]func(fstest.MapFS, *Config){
		"content of a file":        func(tree fstest.MapFS, _ *Config) { tree["bin/app"].Data = []byte("Program") },
		"mode of a file":           func(tree fstest.MapFS, _ *Config) { tree["bin/app"].Mode = 0o700 },
		"sticky bit of a folder":   func(tree fstest.MapFS, _ *Config) { tree["tmp"].Mode &^= fs.ModeSticky },
		"target of a link":         func(tree fstest.MapFS, _ *Config) { tree["bin/sh"].Data = []byte("/bin/app") },
		"a file more":              func(tree fstest.MapFS, _ *Config) { tree["etc"] = &fstest.MapFile{} },
		"user":                     func(_ fstest.MapFS, config *Config) { config.User = "0" },
		"entry point":              func(_ fstest.MapFS, config *Config) { config.Entrypoint = []string{"/bin/sh"} },
		"arguments":                func(_ fstest.MapFS, config *Config) { config.Cmd = nil },
		"environment":              func(_ fstest.MapFS, config *Config) { config.Env = []string{"PATH=/"} },
		"folder in which it works": func(_ fstest.MapFS, config *Config) { config.WorkingDir = "/tmp" },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			files, settings := tree(time.Time{}), config
			change(files, &settings)
			digest, err := Write(io.Discard, "localhost/test:1", settings, files)
			if err != nil {
				t.Fatal(err)
			}
			if digest == original {
				t.Error("the digest stayed the same")
			}
		})
	}
}

func TestLayoutRefersToItsBlobs(t *testing.T) {
	archive, digest := write(t, tree(time.Time{}))
	files := untar(t, archive)

	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	decode(t, files["index.json"].content, &index)
	entry := index.Manifests[0]
	if entry.Digest != digest {
		t.Errorf("index names the manifest %s, Write returned %s", entry.Digest, digest)
	}
	if got := entry.Annotations["io.containerd.image.name"]; got != "localhost/test:1" {
		t.Errorf("image name %q, want localhost/test:1", got)
	}
	if got := entry.Platform.Architecture; got != runtime.GOARCH {
		t.Errorf("architecture %q, want %q", got, runtime.GOARCH)
	}

	var manifest struct {
		Config descriptor   `json:"config"`
		Layers []descriptor `json:"layers"`
	}
	decode(t, blob(t, files, entry), &manifest)
	var configuration struct {
		Architecture string `json:"architecture"`
		Config       Config `json:"config"`
		RootFS       struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	decode(t, blob(t, files, manifest.Config), &configuration)
	if got := configuration.Config.User; got != config.User {
		t.Errorf("user %q, want %q", got, config.User)
	}
	// The layer is not compressed, so its digest is also its diff ID.
	if got, want := configuration.RootFS.DiffIDs[0], manifest.Layers[0].Digest; got != want {
		t.Errorf("diff ID %s, want the layer's digest %s", got, want)
	}

	layer := untar(t, blob(t, files, manifest.Layers[0]))
	if got := string(layer["bin/app"].content); got != "program" {
		t.Errorf("bin/app holds %q, want %q", got, "program")
	}
	if got := layer["bin/sh"].header.Linkname; got != "app" {
		t.Errorf("bin/sh leads to %q, want %q", got, "app")
	}
	if got, want := layer["tmp/"].header.Mode, int64(0o1777); got != want {
		t.Errorf("mode of tmp %o, want %o", got, want)
	}
	for name, file := range layer {
		if h := file.header; h.Uid != 0 || h.Gid != 0 || h.Uname != "" || !h.ModTime.Equal(time.Unix(0, 0)) {
			t.Errorf("%s carries an owner or a time: uid %d, gid %d, user %q, changed %s", name, h.Uid, h.Gid, h.Uname, h.ModTime)
		}
	}
}

func TestImageOfAFolderOnDisk(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "app"), []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/absolute/path", filepath.Join(folder, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(io.Discard, "localhost/test:1", config, os.DirFS(folder)); err != nil {
		t.Fatal(err)
	}
}

func TestRefusesADeviceByName(t *testing.T) {
	files := fstest.MapFS{"dev/null": {Mode: fs.ModeDevice | fs.ModeCharDevice}}
	_, err := Write(io.Discard, "localhost/test:1", config, files)
	if err == nil || !strings.Contains(err.Error(), "dev/null") {
		t.Errorf("error %v, want one that names dev/null", err)
	}
}

func TestReportsWhereWritingFails(t *testing.T) {
	reader, writer := io.Pipe()
	reader.Close()
	if _, err := Write(writer, "localhost/test:1", config, tree(time.Time{})); err == nil {
		t.Error("no error although nobody reads")
	}
}

func write(t *testing.T, tree fs.FS) (archive []byte, digest string) {
	t.Helper()
	var buffer bytes.Buffer
	digest, err := Write(&buffer, "localhost/test:1", config, tree)
	if err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes(), digest
}

type file struct {
	header  *tar.Header
	content []byte
}

func untar(t *testing.T, archive []byte) map[string]file {
	t.Helper()
	files := map[string]file{}
	reader := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = file{header, content}
	}
}

// blob returns the content that a descriptor names, checked against its size and digest.
func blob(t *testing.T, files map[string]file, d descriptor) []byte {
	t.Helper()
	content := files["blobs/"+strings.Replace(d.Digest, ":", "/", 1)].content
	if len(content) != d.Size || fmt.Sprintf("sha256:%x", sha256.Sum256(content)) != d.Digest {
		t.Fatalf("blob %s is missing or not what its name says", d.Digest)
	}
	return content
}

func decode(t *testing.T, encoded []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(encoded, into); err != nil {
		t.Fatal(err)
	}
}
