package token

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/server/internal/tokentest"
)

// apiServer is the audience of the default token.
const apiServer = "https://kubernetes.default.svc.cluster.local"

func newTestSource(path string, now func() time.Time) (*Source, *bytes.Buffer) {
	log := new(bytes.Buffer)
	return NewSource(path, now, slog.New(slog.NewTextHandler(log, nil))), log
}

// inAnHour is a clock by which all files of the test are settled, and all its
// tokens valid.
func inAnHour() time.Time { return time.Now().Add(time.Hour) }

func freshJWT(audiences ...string) string {
	return tokentest.JWT(time.Now().Add(2*time.Hour), audiences...)
}

func wantDefault(t *testing.T, source *Source, want string) {
	t.Helper()
	got, err := source.Default()
	if err != nil {
		t.Fatalf("no token: %v", err)
	}
	if string(got.JWT) != want {
		t.Errorf("got token %q, want %q", got.JWT, want)
	}
}

func wantUnavailable(t *testing.T, source *Source, reason string) {
	t.Helper()
	_, err := source.Default()
	if err == nil {
		t.Fatalf("there is a token, want an error with %q", reason)
	}
	if !strings.Contains(err.Error(), reason) {
		t.Errorf("the error names not %q: %v", reason, err)
	}
}

func TestTokenAndExpiry(t *testing.T) {
	jwt := tokentest.JWT(time.Date(2099, 1, 2, 3, 4, 5, 0, time.UTC), apiServer)
	volume := tokentest.NewVolume(t, map[string]string{"token": jwt})
	source, _ := newTestSource(volume.TokenPath(), time.Now)

	got, err := source.Default()
	if err != nil {
		t.Fatal(err)
	}
	if string(got.JWT) != jwt {
		t.Errorf("got %q, want %q", got.JWT, jwt)
	}
	want := `{"token":"` + jwt + `","expirationTimestamp":"2099-01-02T03:04:05Z"}` + "\n"
	if string(got.JSON) != want {
		t.Errorf("got %s, want %s", got.JSON, want)
	}
}

func TestWhiteSpaceAroundTheTokenIsNotPartOfIt(t *testing.T) {
	jwt := freshJWT(apiServer)
	volume := tokentest.NewVolume(t, map[string]string{"token": "\n " + jwt + "\r\n"})
	source, _ := newTestSource(volume.TokenPath(), time.Now)
	wantDefault(t, source, jwt)
}

func TestTokenUnavailable(t *testing.T) {
	write := func(content string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	expired := tokentest.JWT(time.Now().Add(-time.Second), apiServer)
	tests := map[string]struct {
		prepare func(t *testing.T, path string)
		reason  string
	}{
		"missing":     {func(*testing.T, string) {}, "no such file"},
		"empty":       {write(""), "holds no JWT"},
		"not a JWT":   {write("hello"), "holds no JWT"},
		"half a JWT":  {write(expired[:len(expired)-400]), "holds no JWT"},
		"expired":     {write(expired), "expired at"},
		"too large":   {write(strings.Repeat("x", maxSize+1)), "65537 bytes, more than the 65536"},
		"a directory": {func(t *testing.T, path string) { os.Mkdir(path, 0o755) }, "not a regular file"},
		"a named pipe": {func(t *testing.T, path string) {
			if err := syscall.Mkfifo(path, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "not a regular file"},
		"a loop of links": {func(t *testing.T, path string) { os.Symlink(path, path) }, "too many levels of symbolic links"},
		"10 MB":           {write(strings.Repeat("x", 10<<20)), "10485760 bytes, more than the 65536"},
		"a dangling link": {func(t *testing.T, path string) { os.Symlink("nowhere", path) }, "no such file"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "token")
			test.prepare(t, path)
			source, log := newTestSource(path, time.Now)
			wantUnavailable(t, source, test.reason)
			wantUnavailable(t, source, test.reason)
			if lines := strings.Count(log.String(), "\n"); lines != 1 {
				t.Errorf("logged %d lines for one state, want 1:\n%s", lines, log)
			}
			if strings.Contains(log.String(), expired[:20]) {
				t.Errorf("the token is in the log:\n%s", log)
			}
		})
	}
}

func TestFileThatMayNotBeReadNamesTheGroup(t *testing.T) {
	err := unreadable(&os.PathError{Op: "open", Path: "/token", Err: syscall.EACCES})
	if !strings.Contains(err.Error(), "fsGroup") {
		t.Errorf("the error names not fsGroup: %v", err)
	}
}

func TestTokenExpiresWhileTheServerRuns(t *testing.T) {
	expires := time.Now().Add(time.Hour).Truncate(time.Second)
	volume := tokentest.NewVolume(t, map[string]string{"token": tokentest.JWT(expires, apiServer)})
	now := expires.Add(-1)
	source, log := newTestSource(volume.TokenPath(), func() time.Time { return now })
	if _, err := source.Default(); err != nil {
		t.Fatal(err)
	}
	now = expires
	wantUnavailable(t, source, "expired at "+expires.UTC().Format(time.RFC3339))

	volume.Swap(t, map[string]string{"token": tokentest.JWT(expires.Add(time.Hour), apiServer)})
	if _, err := source.Default(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], "token available") || !strings.Contains(lines[1], "token unavailable") ||
		!strings.Contains(lines[2], "token available") {
		t.Errorf("want the lines available, unavailable, available; got:\n%s", log)
	}
}

// A token that the API server has just made is served though the node's clock is
// somewhat behind; one that is not valid for a while is not, and says so once.
func TestTokenThatIsNotValidYet(t *testing.T) {
	issued := time.Now().Truncate(time.Second)
	jwt := tokentest.Encode(`{"alg":"none"}`, fmt.Sprintf(`{"aud":%q,"nbf":%d,"exp":%d}`, apiServer, issued.Unix(), issued.Add(time.Hour).Unix()), "signature")
	volume := tokentest.NewVolume(t, map[string]string{"token": jwt})
	now := issued.Add(-5*time.Minute - time.Second)
	source, log := newTestSource(volume.TokenPath(), func() time.Time { return now })

	reason := "not valid before " + issued.UTC().Format(time.RFC3339)
	wantUnavailable(t, source, reason)
	now = now.Add(time.Second / 2)
	wantUnavailable(t, source, reason)
	if _, err := source.ForAudience(apiServer); err == nil || !strings.Contains(err.Error(), reason) {
		t.Errorf("got error %v, want that it is not valid yet", err)
	}
	if lines := strings.Count(log.String(), "\n"); lines != 1 {
		t.Errorf("logged %d lines for one state, want 1:\n%s", lines, log)
	}
	now = issued.Add(-5 * time.Minute)
	wantDefault(t, source, jwt)
}

func TestMissingTokenIsNotServedFromMemory(t *testing.T) {
	jwt := freshJWT(apiServer)
	volume := tokentest.NewVolume(t, map[string]string{"token": jwt})
	source, _ := newTestSource(volume.TokenPath(), time.Now)
	wantDefault(t, source, jwt)
	volume.Swap(t, nil)
	wantUnavailable(t, source, "no such file")
	volume.Swap(t, map[string]string{"token": jwt})
	wantDefault(t, source, jwt)
}

// The same token object for an unchanged file means that nothing was read.
func TestUnchangedFileIsNotReadAgain(t *testing.T) {
	volume := tokentest.NewVolume(t, map[string]string{"token": freshJWT(apiServer), "audiences/0": freshJWT("vault")})
	source, _ := newTestSource(volume.TokenPath(), inAnHour)
	gets := map[string]func() (*Token, error){
		"default token": source.Default,
		"extra token":   func() (*Token, error) { return source.ForAudience("vault") },
	}
	for name, get := range gets {
		t.Run(name, func(t *testing.T) {
			first, err := get()
			if err != nil {
				t.Fatal(err)
			}
			if second, err := get(); second != first {
				t.Errorf("got another token object (error %v)", err)
			}
			const most = 5 // the path for stat(2), and a list of files
			if allocations := testing.AllocsPerRun(100, func() { get() }); allocations > most {
				t.Errorf("%v allocations for an unchanged file, want at most %d", allocations, most)
			}
		})
	}
}

// A file with the same size, times and inode is another one if it was changed in
// place so fast that its times cannot tell.
func TestFileChangedInPlaceWithinATick(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	source, _ := newTestSource(path, time.Now)
	expires := time.Now().Add(time.Hour)
	for i := range 200 {
		jwt := tokentest.JWT(expires, fmt.Sprintf("audience-%03d", i))
		if err := os.WriteFile(path, []byte(jwt), 0o644); err != nil {
			t.Fatal(err)
		}
		wantDefault(t, source, jwt)
		// Linux 6.13 and later tell such changes apart by their times, others do not.
		if source.primary.settled {
			t.Fatal("the times of a file that was changed just now are trusted")
		}
	}
}

func TestHalfWrittenFileIsNotServed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	source, _ := newTestSource(path, time.Now)
	jwt := freshJWT(apiServer)
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for i := range len(jwt) {
		// Only the signature shows no lack, and its length is not ours to know.
		if i < strings.LastIndex(jwt, ".")+2 {
			wantUnavailable(t, source, "holds no JWT")
		}
		if _, err := file.WriteString(jwt[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	wantDefault(t, source, jwt)
}

// Readers ask all the time while the kubelet swaps the token. A read that began
// after a swap never gives what was there before it, and never anything but one
// of the tokens.
func TestRotationUnderConcurrentReaders(t *testing.T) {
	const swaps, readers = 50, 4
	expires := time.Now().Add(time.Hour).Truncate(time.Second)
	files := make([]map[string]string, swaps)
	generations := make(map[string]int) // by token
	for i := range files {
		primary := tokentest.JWT(expires.Add(time.Duration(i)*time.Second), apiServer)
		extra := tokentest.JWT(expires.Add(time.Duration(i)*time.Second), "vault")
		files[i] = map[string]string{"token": primary, "audiences/0": extra}
		generations[primary], generations[extra] = i, i
	}
	volume := tokentest.NewVolume(t, files[0])
	source, _ := newTestSource(volume.TokenPath(), time.Now)

	var current atomic.Int64 // the generation whose swap has returned
	var seen [readers]atomic.Int64
	progress := make(chan struct{}, 1)
	check := func(get func() (*Token, error), least int64) bool {
		token, err := get()
		if err != nil {
			t.Errorf("no token: %v", err)
			return false
		}
		generation, known := generations[string(token.JWT)]
		if !known || int64(generation) < least {
			t.Errorf("got a token of generation %d (known: %v) after the swap to %d", generation, known, least)
			return false
		}
		return true
	}
	var group sync.WaitGroup
	for i := range readers {
		group.Go(func() {
			for {
				least := current.Load()
				newSource, _ := newTestSource(volume.TokenPath(), time.Now) // which lists the folder
				if !check(source.Default, least) ||
					!check(func() (*Token, error) { return source.ForAudience("vault") }, least) ||
					!check(func() (*Token, error) { return newSource.ForAudience("vault") }, least) {
					least = swaps - 1 // nobody has to wait for this one any more
				}
				seen[i].Store(least)
				select {
				case progress <- struct{}{}:
				default:
				}
				if least == swaps-1 {
					return
				}
			}
		})
	}
	for i := 1; i < swaps; i++ {
		volume.Swap(t, files[i])
		current.Store(int64(i))
		// The kubelet swaps once in many minutes: each reader has a whole read
		// between two swaps.
		for r := range seen {
			for seen[r].Load() < int64(i) {
				<-progress
			}
		}
	}
	group.Wait()
}

func TestAudiences(t *testing.T) {
	vault, aws, both := freshJWT("vault"), freshJWT("sts.amazonaws.com"), freshJWT("one", "two")
	primary := freshJWT(apiServer, "k3s")
	volume := tokentest.NewVolume(t, map[string]string{
		"token": primary, "audiences/0": aws, "audiences/1": vault, "audiences/2": both,
	})
	source, _ := newTestSource(volume.TokenPath(), time.Now)
	for audience, want := range map[string]string{
		"vault": vault, "sts.amazonaws.com": aws, "one": both, "two": both, apiServer: primary, "k3s": primary,
	} {
		got, err := source.ForAudience(audience)
		if err != nil {
			t.Errorf("audience %s: %v", audience, err)
		} else if string(got.JWT) != want {
			t.Errorf("audience %s: got token %q, want %q", audience, got.JWT, want)
		}
	}

	_, err := source.ForAudience("Vault")
	var unknown *UnknownAudienceError
	if !errors.As(err, &unknown) {
		t.Fatalf("got error %v, want an UnknownAudienceError", err)
	}
	if want := []string{apiServer, "k3s", "sts.amazonaws.com", "vault", "one", "two"}; !slices.Equal(unknown.Known, want) {
		t.Errorf("got known audiences %q, want %q", unknown.Known, want)
	}
}

func TestUnknownAudienceWithoutTheFolder(t *testing.T) {
	volume := tokentest.NewVolume(t, map[string]string{"token": freshJWT(apiServer)})
	source, _ := newTestSource(volume.TokenPath(), time.Now)
	_, err := source.ForAudience("vault")
	var unknown *UnknownAudienceError
	if !errors.As(err, &unknown) {
		t.Errorf("got error %v, want an UnknownAudienceError", err)
	}
}

func TestAudienceMovesToAnotherFile(t *testing.T) {
	vault, aws := freshJWT("vault"), freshJWT("aws")
	volume := tokentest.NewVolume(t, map[string]string{"token": freshJWT(apiServer), "audiences/0": vault, "audiences/1": aws})
	source, _ := newTestSource(volume.TokenPath(), inAnHour)
	for range 2 {
		for audience, want := range map[string]string{"vault": vault, "aws": aws} {
			if got, err := source.ForAudience(audience); err != nil || string(got.JWT) != want {
				t.Errorf("audience %s: got %v (error %v), want %q", audience, got, err, want)
			}
		}
		volume.Swap(t, map[string]string{"token": freshJWT(apiServer), "audiences/0": aws, "audiences/1": vault})
	}
}

func TestExpiredTokenForAnAudienceIsNotUnknown(t *testing.T) {
	volume := tokentest.NewVolume(t, map[string]string{
		"token": freshJWT(apiServer), "audiences/0": tokentest.JWT(time.Now().Add(-time.Minute), "vault"),
	})
	source, _ := newTestSource(volume.TokenPath(), time.Now)
	if _, err := source.ForAudience("vault"); err == nil || !strings.Contains(err.Error(), "expired at") {
		t.Errorf("got error %v, want that it expired", err)
	}
}

// The file that cannot be read may be the one that was asked for.
func TestUnreadableFileIsNotAnUnknownAudience(t *testing.T) {
	volume := tokentest.NewVolume(t, map[string]string{"token": freshJWT(apiServer), "audiences/0": "half a tok"})
	source, _ := newTestSource(volume.TokenPath(), time.Now)
	if _, err := source.ForAudience("vault"); err == nil || !strings.Contains(err.Error(), "holds no JWT") {
		t.Errorf("got error %v, want that a file holds no JWT", err)
	}
}

func TestNumberOfAudienceFilesIsBounded(t *testing.T) {
	files := map[string]string{"token": freshJWT(apiServer)}
	for i := range 100 {
		files[fmt.Sprintf("audiences/%02d", i)] = freshJWT(fmt.Sprint("audience-", i))
	}
	volume := tokentest.NewVolume(t, files)
	source, _ := newTestSource(volume.TokenPath(), time.Now)
	_, err := source.ForAudience("unknown")
	var unknown *UnknownAudienceError
	if !errors.As(err, &unknown) {
		t.Fatalf("got error %v, want an UnknownAudienceError", err)
	}
	if len(unknown.Known) != 1+maxExtraFiles {
		t.Errorf("%d audiences are known, want %d", len(unknown.Known), 1+maxExtraFiles)
	}
}

// A folder that is a volume of its own has the kubelet's ..data in it.
func TestAudiencesInAVolumeOfTheirOwn(t *testing.T) {
	dir := t.TempDir()
	extra := tokentest.NewVolume(t, map[string]string{"0": freshJWT("vault")})
	if err := os.Symlink(extra.Dir, filepath.Join(dir, extraFolder)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(freshJWT(apiServer)), 0o644); err != nil {
		t.Fatal(err)
	}
	source, _ := newTestSource(filepath.Join(dir, "token"), time.Now)
	if _, err := source.ForAudience("vault"); err != nil {
		t.Error(err)
	}
	if len(source.extra) != 1 {
		t.Errorf("%d files are taken for tokens, want 1", len(source.extra))
	}
}
