package checks

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
)

// startsInOrder compares when the first processes of the containers began.
func startsInOrder(t *testing.T, v *VM) {
	order := append(names(v.pod.Spec.InitContainers), names(v.pod.Spec.Containers)...)
	if want := []string{"guest-console-log", initContainer, serverContainer, "compute"}; !slices.Equal(order, want) {
		t.Fatalf("the containers are %q, want %q", order, want)
	}
	var last time.Time
	for _, name := range order {
		pid, err := v.process(t.Context(), name)
		check(t, err)
		began, err := cluster.ProcessStart(pid)
		check(t, err)
		if began.Before(last) {
			t.Errorf("%s began before the one ahead of it", name)
		}
		last = began
	}
}

// hasNoPrivilege reads what the kernel lets the processes do (proc_pid_status(5)).
func hasNoPrivilege(t *testing.T, v *VM) {
	const none, netAdmin = "0000000000000000", "0000000000001000"
	for _, want := range []struct{ container, uids, groups, capabilities string }{
		{initContainer, "0 0 0 0", "0 107", netAdmin},
		{serverContainer, "65532 65532 65532 65532", "107 65532", none},
	} {
		pid, err := v.process(t.Context(), want.container)
		check(t, err)
		status, err := cluster.ProcessStatus(pid)
		check(t, err)
		for name, value := range map[string]string{
			"Uid": want.uids, "Groups": want.groups,
			"CapBnd": want.capabilities, "CapPrm": want.capabilities, "CapEff": want.capabilities, "CapInh": none, "CapAmb": none,
			"NoNewPrivs": "1", "Seccomp": "2",
		} {
			if status[name] != value {
				t.Errorf("%s: %s is %q, want %q", want.container, name, status[name], value)
			}
		}
		options, err := rootOptions(pid)
		check(t, err)
		if !slices.Contains(options, "ro") {
			t.Errorf("%s: its root is mounted %s, want ro", want.container, options)
		}
	}
}

// rootOptions are the mount options of a process's root folder (proc_pid_mountinfo(5)).
func rootOptions(pid int) ([]string, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(content)) {
		if fields := strings.Fields(line); len(fields) > 5 && fields[4] == "/" {
			return strings.Split(fields[5], ","), nil
		}
	}
	return nil, fmt.Errorf("process %d has no root folder", pid)
}

func isGuaranteed(t *testing.T, v *VM) {
	if class := v.pod.Status.QOSClass; class != corev1.PodQOSGuaranteed {
		t.Errorf("its QoS class is %s", class)
	}
	for _, sidecar := range sidecars(v.pod) {
		c, err := v.container(t.Context(), sidecar.Name)
		check(t, err)
		memory, err := c.MemoryLimit()
		check(t, err)
		cpu, err := c.CPULimit()
		check(t, err)
		if want := int(sidecar.Resources.Limits.Memory().Value()); memory != want {
			t.Errorf("%s: %d bytes of memory are its limit, want %d", sidecar.Name, memory, want)
		}
		if want := int(sidecar.Resources.Limits.Cpu().MilliValue()); cpu != want {
			t.Errorf("%s: %dm of a CPU are its limit, want %dm", sidecar.Name, cpu, want)
		}
	}
}
