package kubelet

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func entries(t *testing.T, folder string) []string {
	t.Helper()
	listed, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range listed {
		all = append(all, e.Name())
	}
	return all
}

func TestVolumeLooksLikeTheKubelets(t *testing.T) {
	folder := t.TempDir()
	for _, content := range []string{"old", "new"} {
		files := map[string][]byte{"token": []byte(content), "audiences/0": []byte(content + "-0")}
		if err := WriteVolume(folder, files, 0o640, nil); err != nil {
			t.Fatal(err)
		}
		for path, want := range files {
			if got, err := os.ReadFile(filepath.Join(folder, path)); err != nil || string(got) != string(want) {
				t.Errorf("%s holds %q, %v", path, got, err)
			}
		}
		listed := entries(t, folder)
		if len(listed) != 4 || !strings.HasPrefix(listed[0], "..2") ||
			!slices.Equal(listed[1:], []string{dataLink, "audiences", "token"}) {
			t.Errorf("the volume holds %q", listed)
		}
		for link, want := range map[string]string{dataLink: listed[0], "token": "..data/token", "audiences": "..data/audiences"} {
			if got, err := os.Readlink(filepath.Join(folder, link)); err != nil || got != want {
				t.Errorf("%s points to %s, %v; want %s", link, got, err, want)
			}
		}
	}
}

func TestReadersOfAVolumeSeeOneVersion(t *testing.T) {
	folder := t.TempDir()
	write := func(version string) {
		content := []byte(strings.Repeat(version, 10000))
		if err := WriteVolume(folder, map[string][]byte{"token": content}, 0o644, nil); err != nil {
			t.Error(err)
		}
	}
	write("a")
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				// A reader may hold the old folder while it is removed, and
				// finds no file then; it never finds half of one.
				got, err := os.ReadFile(filepath.Join(folder, "token"))
				if err == nil && (len(got) != 10000 || strings.Count(string(got), string(got[:1])) != 10000) {
					t.Errorf("a mixture of %d bytes", len(got))
					return
				}
			}
		})
	}
	for i := range 200 {
		write(string(rune('a' + i%26)))
	}
	close(stop)
	readers.Wait()
}

func TestVolumeIsNotLeft(t *testing.T) {
	for _, path := range []string{"../x", "/x", "a/../../x"} {
		if err := WriteVolume(t.TempDir(), map[string][]byte{path: nil}, 0o644, nil); err == nil {
			t.Errorf("%s is written", path)
		}
	}
}
