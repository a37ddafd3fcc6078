package bindings

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/example/kubevirt-imds/tools/e2e/guests/stage"
	"github.com/example/kubevirt-imds/tools/e2e/process"
	"github.com/example/kubevirt-imds/tools/e2e/qemu"
	"github.com/example/kubevirt-imds/tools/e2e/suite"
)

const (
	// redirectPort is what the webhook chooses for a VM that does not list it.
	redirectPort = 60080
	// launcherID is the user and the group of virt-launcher, and of passt with it.
	launcherID = 107
	// passtReady ends what passt says when its socket is there.
	passtReady = "You can now start qemu"
)

// startPasst joins the guest to the pod network as KubeVirt does in passt binding: no link is made, passt is the guest's
// network, and a process like any other in the pod.
func (sc *scene) startPasst(t *suite.T, vm *stage.VM) {
	// By virt-handler, for passt.
	t.Check(vm.Net.Pod.Sysctl("net.ipv4.ip_unprivileged_port_start", "0"))
	t.Check(vm.Net.Pod.Sysctl("net.ipv4.ping_group_range", fmt.Sprint(launcherID, " ", launcherID)))

	folder, err := os.MkdirTemp("", "passt-")
	t.Check(err)
	t.Cleanup(func() { os.RemoveAll(folder) })
	t.Check(os.Chown(folder, launcherID, launcherID))
	socket := filepath.Join(folder, "socket")

	var ports []string
	for _, port := range vmPorts {
		ports = append(ports, fmt.Sprint(port))
	}
	ctx, stop := context.WithTimeout(t.Context(), stage.Patience)
	defer stop()
	said, to := io.Pipe()
	command := exec.Command("passt", "--foreground", "--stderr", "--runas", fmt.Sprint(launcherID),
		"--socket", socket, "--interface", "eth0", "--tcp-ports", strings.Join(ports, ","), "--udp-ports", "none")
	command.Stderr = to
	passt, err := process.Start(vm.Net.Pod, command)
	if err != nil {
		t.Fatalf("%v; on Debian: apt-get install --no-install-recommends passt", err)
	}
	t.Cleanup(func() {
		passt.Signal(syscall.SIGKILL)
		passt.Err()
		to.Close()
	})
	defer context.AfterFunc(ctx, func() { said.Close() })()
	if err := awaitLine(said, passtReady); err != nil {
		t.Fatalf("passt: %v", err)
	}
	vm.AddNIC(qemu.NIC{MAC: passtGuestMAC, Stream: socket})
}

// awaitLine returns when a line with that text has come, and has the rest read in the background.
func awaitLine(from io.Reader, text string) error {
	var seen []string
	for lines := bufio.NewScanner(from); lines.Scan(); {
		if seen = append(seen, lines.Text()); strings.Contains(lines.Text(), text) {
			go io.Copy(io.Discard, from)
			return nil
		}
	}
	return fmt.Errorf("it has not said %q but:\n%s", text, strings.Join(seen, "\n"))
}

// passtGuestMAC is not the pod's: that is passt's own, toward the guest.
var passtGuestMAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x57}

// redirection is the environment of both sidecars where the VM's pod network is bound by passt.
var redirection = []string{fmt.Sprintf("IMDS_REDIRECT_PORT=%d", redirectPort)}
