package sandbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/tools/podnet"
)

// Each process that a sandbox consists of is this test's program again, and one with the race detector in it
// would sleep a second before it exits.
func TestMain(m *testing.M) {
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	m.Run()
}

func TestCommandSeesItsOwnNamespaces(t *testing.T) {
	s := start(t)
	for _, kind := range []string{"mnt", "net", "pid"} {
		outside, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		if inside := output(t, s, "readlink", "/proc/self/ns/"+kind); inside == outside {
			t.Errorf("the command is in the machine's %s namespace", kind)
		}
	}
	if got := output(t, s, "cat", "/proc/1/cmdline"); !strings.HasPrefix(got, roleInit+"\x00") {
		t.Errorf("pid 1 is %q, want %s", got, roleInit)
	}
}

func TestCommandKeepsFolderEnvironmentAndStreams(t *testing.T) {
	s := start(t)
	folder := t.TempDir()
	command := s.Command(t.Context(), "sh", "-c", `read line; echo "$PWD $GREETING $line"`)
	command.Dir = folder
	command.Env = append(os.Environ(), "GREETING=hello")
	command.Stdin = strings.NewReader("world\n")
	got, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := folder + " hello world\n"; string(got) != want {
		t.Errorf("output %q, want %q", got, want)
	}
}

func TestExitStatusIsTheCommands(t *testing.T) {
	s := start(t)
	for _, test := range []struct {
		name    string
		command []string
		want    int
	}{
		{"success", []string{"true"}, 0},
		{"exit status", []string{"sh", "-c", "exit 7"}, 7},
		{"ended by a signal", []string{"sh", "-c", "kill -TERM $$"}, 128 + int(syscall.SIGTERM)},
		{"no such command", []string{"no-such-command"}, 127},
	} {
		t.Run(test.name, func(t *testing.T) {
			command := s.Command(t.Context(), test.command[0], test.command[1:]...)
			err := command.Run()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if got := command.ProcessState.ExitCode(); got != test.want {
				t.Errorf("exit status %d, want %d", got, test.want)
			}
		})
	}
}

func TestTerminationSignalReachesTheCommand(t *testing.T) {
	s := start(t)
	command := s.Command(t.Context(), "sh", "-c", `trap 'echo terminated; exit 3' TERM; echo ready; while :; do sleep 0.01; done`)
	lines := startWithOutput(t, command)
	expectLine(t, lines, "ready\n")
	if err := command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	expectLine(t, lines, "terminated\n")
	if command.Wait(); command.ProcessState.ExitCode() != 3 {
		t.Errorf("exit status %d, want 3", command.ProcessState.ExitCode())
	}
}

func TestCancelledCommandDiesInside(t *testing.T) {
	s := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	command := s.Command(ctx, "sh", "-c", "echo ready; exec sleep 1000")
	lines := startWithOutput(t, command)
	expectLine(t, lines, "ready\n")
	cancel()
	// The end of the output is the end of the last process that could write to it.
	if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
		t.Errorf("rest of the output %q, error %v, want none", rest, err)
	}
	if err := command.Wait(); err == nil {
		t.Error("a cancelled command ended without an error")
	}
}

func TestOrphansAreReaped(t *testing.T) {
	s := start(t)
	// The inner shell is an orphan when the outer one ends; it tells its pid and ends when its input does.
	orphanInput := filepath.Join(t.TempDir(), "input")
	if err := syscall.Mkfifo(orphanInput, 0o600); err != nil {
		t.Fatal(err)
	}
	command := s.Command(t.Context(), "sh", "-c", `sh -c 'echo $$; read line' <"$0" & exit 0`, orphanInput)
	lines := startWithOutput(t, command)
	input, err := os.OpenFile(orphanInput, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(readLine(t, lines))
	if err := command.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := output(t, s, "cut", "-d ", "-f4", "/proc/"+pid+"/stat"); got != "1" {
		t.Fatalf("parent of the orphan is %s, want 1", got)
	}
	input.Close()
	// A zombie would keep its folder in /proc for as long as pid 1 does not wait for it.
	await(t, func() bool { return s.Command(t.Context(), "test", "-e", "/proc/"+pid).Run() != nil })
}

func TestWritesToSystemFoldersStayInside(t *testing.T) {
	s := start(t)
	for _, folder := range []string{"/etc", "/var/lib", "/run", "/var/log"} {
		file := filepath.Join(folder, s.config.Name)
		output(t, s, "sh", "-c", "echo inside >"+file)
		if got := output(t, s, "cat", file); got != "inside" {
			t.Errorf("%s holds %q inside, want %q", file, got, "inside")
		}
		if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
			os.Remove(file)
			t.Errorf("%s is on the machine (%v)", file, err)
		}
	}
	if got := output(t, s, "cat", "/etc/passwd"); got == "" {
		t.Error("/etc/passwd cannot be read inside")
	}
}

func TestMachineWideSysctlsAreCovered(t *testing.T) {
	s := start(t)
	before := readSysctls(t)
	for name, want := range sysctls {
		if got := output(t, s, "cat", "/proc/sys/"+name); got != want {
			t.Fatalf("%s is %s inside, want %s", name, got, want)
		}
		output(t, s, "sh", "-c", "echo 3 >/proc/sys/"+name)
	}
	for name, want := range before {
		if got := readSysctls(t)[name]; got != want {
			t.Errorf("%s of the machine changed from %s to %s", name, want, got)
		}
	}
}

func TestNetworkIsTheSandboxs(t *testing.T) {
	s := start(t)
	network, err := s.Network()
	if err != nil {
		t.Fatal(err)
	}
	defer network.Close()
	listener := listenInside(t, s, network)
	go func() {
		if conn, err := listener.Accept(); err == nil {
			io.WriteString(conn, "hello\n")
			conn.Close()
		}
	}()
	conn, err := network.Dial(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	expectLine(t, conn, "hello\n")

	listener.Close()
	if _, err := network.Dial(t.Context(), "tcp", listener.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("error %v without a listener, want a refused connection", err)
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range addresses {
		if strings.HasPrefix(address.String(), s.config.Address+"/") {
			t.Errorf("the machine has the sandbox's address %s", address)
		}
	}
}

func TestStopEndsEverythingAndLeavesNothing(t *testing.T) {
	mounts := read(t, "/proc/self/mountinfo")
	s := startWithoutCleanup(t)
	// In a session of its own, and with a cgroup of its own.
	command := s.Command(t.Context(), "setsid", "sh", "-c",
		`for group in /sys/fs/cgroup/"$0" /sys/fs/cgroup/*/"$0"; do test -d $group && mkdir $group/child; done; echo ready; exec sleep 1000`, s.config.Name)
	lines := startWithOutput(t, command)
	expectLine(t, lines, "ready\n")
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(lines); err != nil {
		t.Fatal(err)
	}
	command.Wait()
	if left := cgroupFolders(t, s.config.Name); len(left) > 0 {
		t.Errorf("cgroups left: %v", left)
	}
	if after := read(t, "/proc/self/mountinfo"); after != mounts {
		t.Errorf("mounts of the machine changed from\n%s\nto\n%s", mounts, after)
	}
	if err := s.Command(t.Context(), "true").Run(); err == nil {
		t.Error("a command ran in a sandbox that has been stopped")
	}
}

// A killed process cannot clean up. What it started is started here by a second process, this test's program
// again, so that it can be killed.
func TestSandboxEndsWithTheProcessThatStartedIt(t *testing.T) {
	if name := os.Getenv("SANDBOX_TO_ABANDON"); name != "" {
		s, err := Start(testConfig(name))
		if err != nil {
			t.Fatal(err)
		}
		command := s.Command(context.Background(), "sh", "-c", "echo ready; exec sleep 1000")
		command.Stdout = os.Stderr
		t.Fatal(command.Run())
	}
	needRoot(t)
	name := testName(t)
	command := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	command.Env = append(os.Environ(), "SANDBOX_TO_ABANDON="+name)
	lines, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer lines.Close()
	command.Stderr = writer
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	expectLine(t, lines, "ready\n")
	if len(cgroupFolders(t, name)) == 0 {
		t.Fatal("the sandbox has no cgroups")
	}
	command.Process.Kill()
	command.Wait()
	if _, err := io.ReadAll(lines); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { return len(cgroupFolders(t, name)) == 0 })
}

func TestSecondSandboxOfTheSameNameIsRefused(t *testing.T) {
	s := start(t)
	other, err := Start(s.config)
	if err == nil {
		other.Stop()
		t.Fatal("two sandboxes of one name")
	}
	if !strings.Contains(err.Error(), "cgroup") || !strings.Contains(err.Error(), s.config.Name) {
		t.Errorf("error %q, want one that names the cgroup %s", err, s.config.Name)
	}
	// The first is unharmed.
	output(t, s, "true")
}

func TestUnusableAddressIsReportedAndNothingIsLeft(t *testing.T) {
	needRoot(t)
	config := testConfig(testName(t))
	config.Address = "not-an-address"
	s, err := Start(config)
	if err == nil {
		s.Stop()
		t.Fatal("a sandbox with an unusable address")
	}
	if !strings.Contains(err.Error(), "not-an-address") {
		t.Errorf("error %q, want one that names the address", err)
	}
	if left := cgroupFolders(t, config.Name); len(left) > 0 {
		t.Errorf("cgroups left: %v", left)
	}
}

// needRoot ends a test that an ordinary user cannot run: as failed where the environment says that it is CI.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	const reason = "a sandbox needs root for its cgroups; run the tests of this module as root"
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

func start(t *testing.T) *Sandbox {
	t.Helper()
	s := startWithoutCleanup(t)
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func startWithoutCleanup(t *testing.T) *Sandbox {
	t.Helper()
	needRoot(t)
	s, err := Start(testConfig(testName(t)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testName(t *testing.T) string {
	return "sandbox-test-" + filepath.Base(filepath.Dir(t.TempDir()))
}

func testConfig(name string) Config {
	return Config{Name: name, Address: "10.99.0.1", Services: "10.96.0.0/16"}
}

// output runs a command that must succeed.
func output(t *testing.T, s *Sandbox, name string, args ...string) string {
	t.Helper()
	var complaint bytes.Buffer
	command := s.Command(t.Context(), name, args...)
	command.Stderr = &complaint
	got, err := command.Output()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, complaint.String())
	}
	return strings.TrimSpace(string(got))
}

func startWithOutput(t *testing.T, command *exec.Cmd) io.Reader {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })
	command.Stdout = writer
	err = command.Start()
	writer.Close()
	if err != nil {
		t.Fatal(err)
	}
	return reader
}

func readLine(t *testing.T, from io.Reader) string {
	t.Helper()
	var line []byte
	for character := make([]byte, 1); ; {
		if _, err := io.ReadFull(from, character); err != nil {
			t.Fatalf("after %q: %v", line, err)
		}
		line = append(line, character[0])
		if character[0] == '\n' {
			return string(line)
		}
	}
}

func expectLine(t *testing.T, from io.Reader, want string) {
	t.Helper()
	if got := readLine(t, from); got != want {
		t.Fatalf("line %q, want %q", got, want)
	}
}

// await waits for what no event tells.
func await(t *testing.T, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatal("it did not come about")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func cgroupFolders(t *testing.T, name string) []string {
	t.Helper()
	hierarchies, err := listHierarchies()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, hierarchy := range hierarchies {
		folder := filepath.Join(hierarchy, name)
		if _, err := os.Stat(folder); err == nil {
			found = append(found, folder)
		}
	}
	return found
}

func readSysctls(t *testing.T) map[string]string {
	t.Helper()
	values := map[string]string{}
	for name := range sysctls {
		values[name] = strings.TrimSpace(read(t, "/proc/sys/"+name))
	}
	return values
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// listenInside listens at the address that only the sandbox has.
func listenInside(t *testing.T, s *Sandbox, network *podnet.Namespace) net.Listener {
	t.Helper()
	var listener net.Listener
	err := network.Do(func() (err error) {
		listener, err = net.Listen("tcp", s.config.Address+":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}
