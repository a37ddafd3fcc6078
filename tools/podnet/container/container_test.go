package container

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/example/kubevirt-imds/tools/podnet"
)

func TestMain(m *testing.M) {
	podnet.Main(m)
}

// sight is what testdata/inspect prints.
type sight struct {
	Args, Env, Root, Writable []string
	UID, GID, PID             int
	Groups                    []int
	Host, File, Netfilter     string
	Status                    map[string]string
}

// inspectImage builds the only program that the containers of these tests hold.
func inspectImage(t *testing.T) string {
	t.Helper()
	image := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(image, "inspect"), "./testdata/inspect")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return image
}

func newNetwork(t *testing.T) *podnet.Namespace {
	t.Helper()
	podnet.Require(t)
	network, err := podnet.NewNamespace("pod")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { network.Close() })
	return network
}

func newLog(t *testing.T) *os.File {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return log
}

func start(t *testing.T, spec Spec) (*Container, *os.File) {
	t.Helper()
	log := newLog(t)
	c, err := Start(newNetwork(t), spec, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Kill)
	return c, log
}

func TestWhatAContainerSees(t *testing.T) {
	image := inspectImage(t)
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name         string
		uid          uint32
		capabilities CapabilitySet
		capEff       string
		readOnly     bool
		writable     []string
		netfilter    string // what is wrong with it
	}{
		{"user of its own without capabilities", 65532, 0, "0000000000000000", true, []string{"/rw"}, ""},
		{"root with one capability", 0, mustParse("NET_ADMIN"), "0000000000001000", true, []string{"/rw"}, ""},
		{"root whose root file system can be written", 0, mustParse("NET_ADMIN"), "0000000000001000", false, []string{"/", "/rw"}, ""},
		{"root on a kernel without nf_tables", 0, mustParse("NET_ADMIN"), "0000000000001000", true, []string{"/rw"}, unix.EPROTONOSUPPORT.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			container, log := start(t, Spec{
				Name:    "inspector",
				Image:   image,
				Scratch: t.TempDir(),
				Mounts:  []Mount{{Source: volume, Target: "/ro", ReadOnly: true}, {Source: volume, Target: "/rw"}},
				Command: []string{"/inspect", "everything"},
				Env:     []string{"ONLY=this"},
				UID:     c.uid, GID: c.uid,
				Groups:           []uint32{107},
				Capabilities:     c.capabilities,
				ReadOnlyRoot:     c.readOnly,
				NoNewPrivileges:  true,
				WithoutNetfilter: c.netfilter != "",
			})
			code := container.ExitCode()
			text, err := os.ReadFile(log.Name())
			if err != nil || code != 0 {
				t.Fatalf("exit code %d, %v\n%s", code, err, text)
			}
			var got sight
			if err := json.Unmarshal(text, &got); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			if got.UID != int(c.uid) || got.GID != int(c.uid) || got.PID != 1 || got.Host != "inspector" {
				t.Errorf("uid %d, gid %d, pid %d, host %s", got.UID, got.GID, got.PID, got.Host)
			}
			if !slices.Equal(got.Args, []string{"/inspect", "everything"}) || !slices.Equal(got.Env, []string{"ONLY=this"}) {
				t.Errorf("args %q, env %q", got.Args, got.Env)
			}
			if want := []string{"dev", "inspect", "proc", "ro", "rw"}; !slices.Equal(got.Root, want) {
				t.Errorf("/ holds %q, want %q", got.Root, want)
			}
			if !slices.Equal(got.Writable, c.writable) {
				t.Errorf("can write to %q, want %q", got.Writable, c.writable)
			}
			if got.Netfilter != c.netfilter {
				t.Errorf("a socket to nf_tables: %q, want %q", got.Netfilter, c.netfilter)
			}
			if got.File != "content" {
				t.Errorf("the volume's file holds %q", got.File)
			}
			if ids, err := readIDMaps("self"); err != nil {
				t.Fatal(err)
			} else if ids.groups.has(107) && !slices.Equal(got.Groups, []int{107}) {
				t.Errorf("groups %v, want 107", got.Groups)
			}
			checkPrivileges(t, got.Status, c.capabilities, c.capEff)
		})
	}
}

func checkPrivileges(t *testing.T, status map[string]string, bounding CapabilitySet, effective string) {
	t.Helper()
	if len(status) == 0 {
		t.Log("this machine's own /proc is masked, so a container gets none: its privileges are seen from outside only")
		return
	}
	none := strings.Repeat("0", 16)
	bound := none
	if bounding != 0 {
		bound = effective
	}
	want := map[string]string{
		"CapInh": none, "CapAmb": none, "CapPrm": effective, "CapEff": effective, "CapBnd": bound, "NoNewPrivs": "1",
	}
	for key, value := range want {
		if status[key] != value {
			t.Errorf("%s is %s, want %s", key, status[key], value)
		}
	}
}

func TestStatusOfARunningContainer(t *testing.T) {
	image := inspectImage(t)
	for _, uid := range []uint32{0, 65532} {
		c, _ := start(t, Spec{
			Name: "waiting", Image: image, Scratch: t.TempDir(), Command: []string{"/inspect", "wait"},
			UID: uid, GID: uid, Capabilities: mustParse("NET_ADMIN", "CHOWN"), NoNewPrivileges: true,
		})
		got, err := c.Status()
		if err != nil {
			t.Fatal(err)
		}
		effective := map[uint32]string{0: "CHOWN NET_ADMIN", 65532: "none"}[uid]
		if got.UID != uid || got.GID != uid || !got.NoNewPrivileges ||
			got.Bounding.String() != "CHOWN NET_ADMIN" || got.Effective.String() != effective {
			t.Errorf("user %d: %+v", uid, got)
		}
	}
}

func TestHowAContainerEnds(t *testing.T) {
	image := inspectImage(t)
	for behaviour, want := range map[string]string{
		"wait":   "",
		"ignore": "was killed",
		"fail":   "exit code 3",
	} {
		t.Run(behaviour, func(t *testing.T) {
			c, log := start(t, Spec{
				Name: "ending", Image: image, Scratch: t.TempDir(), Command: []string{"/inspect", behaviour},
				UID: 65532, GID: 65532,
			})
			if behaviour == "fail" {
				<-c.Done()
			} else {
				awaitReady(t, log)
			}
			err := c.Terminate(100 * time.Millisecond)
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}

// awaitReady returns when the process has said so.
func awaitReady(t *testing.T, log *os.File) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		text, err := os.ReadFile(log.Name())
		if err != nil {
			t.Fatal(err)
		}
		if string(text) == "ready\n" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it says %q", text)
		}
		time.Sleep(time.Millisecond) // a file has no event for this
	}
}

func TestContainersThatCannotStart(t *testing.T) {
	network := newNetwork(t)
	good := Spec{Name: "bad", Image: inspectImage(t), Scratch: t.TempDir(), Command: []string{"/inspect"}}
	for want, spoil := range map[string]func(*Spec){
		"no command":                       func(s *Spec) { s.Command = nil },
		"no image":                         func(s *Spec) { s.Image = "" },
		"executing /missing: no such file": func(s *Spec) { s.Command = []string{"/missing"} },
		"image: open":                      func(s *Spec) { s.Image = "/missing" },
		"volume at /data: no such file":    func(s *Spec) { s.Mounts = []Mount{{Source: "/missing", Target: "/data"}} },
	} {
		spec := good
		spoil(&spec)
		_, err := Start(network, spec, newLog(t))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "container bad") {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestCapabilityNames(t *testing.T) {
	for _, c := range []struct {
		names []string
		want  CapabilitySet
		text  string
	}{
		{nil, 0, "none"},
		{[]string{"NET_ADMIN"}, 1 << 12, "NET_ADMIN"},
		{[]string{"CHECKPOINT_RESTORE", "CHOWN"}, 1<<40 | 1, "CHOWN CHECKPOINT_RESTORE"},
		{[]string{"ALL"}, 1<<41 - 1, strings.Join(capabilityNames, " ")},
	} {
		got, err := ParseCapabilities(c.names...)
		if err != nil || got != c.want || got.String() != c.text {
			t.Errorf("%v: %#x %s, %v", c.names, got, got, err)
		}
	}
	if _, err := ParseCapabilities("CAP_NET_ADMIN"); err == nil {
		t.Error("CAP_NET_ADMIN is accepted: Kubernetes writes NET_ADMIN")
	}
}

func TestIDsInAUserNamespace(t *testing.T) {
	m := idMap{{inside: 65532, outside: 0, length: 1}, {inside: 1, outside: 100000, length: 10}}
	for id, want := range map[uint32]bool{65532: true, 0: false, 1: true, 10: true, 11: false} {
		if m.has(id) != want {
			t.Errorf("has %d: %t", id, !want)
		}
	}
	for shown, want := range map[string]uint32{"0": 65532, "100009": 10, "5": overflowID, "x": overflowID} {
		if got := m.inside(shown); got != want {
			t.Errorf("%s is %d inside, want %d", shown, got, want)
		}
	}
}
