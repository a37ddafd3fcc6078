package checks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/results"
)

const wiredByAnnotation = prefix + "wired-by"

// The component node-agent, from its installation to its end, in a namespace in which nobody may be privileged.
func TestNodeAgent(t *testing.T) {
	if *kubeconfig != "" {
		t.Skip("it takes a cluster of its own")
	}
	in := newInstallation(t.Context(), here, nodeAgent)
	defer in.must(t, "remove", "kubectl delete -k leaves nothing behind", in.remove)
	in.must(t, "install", "kubectl apply -k, without a warning, gives an admitting webhook", in.install)
	if t.Failed() {
		return
	}
	in.check(t, "manifests/again", "applied again, it changes nothing", in.applyAgain)
	in.check(t, "agent/privileges", "the agent has SYS_ADMIN and NET_ADMIN alone, no token, and no other pod's volume", in.agentPrivileges)
	in.check(t, "agent/baseline", "baseline takes a VM's pod, and none with NET_ADMIN", in.baseline)
	in.onVM(t, "running/order", "in a pod that runs, the sidecars start in order, before compute", startsInOrder(serverContainer))
	in.onVM(t, "running/guaranteed", "the kubelet keeps the pod Guaranteed, with the sidecars' limits in force", isGuaranteed)
	in.onVM(t, "running/inside", "the endpoint is there before the VM's network is", answersInside)
	in.onVM(t, "running/guest", "a guest is served once its bridge and tap are there", servesGuest)
	in.onVM(t, "running/identity", "the guest learns who it is", tellsIdentity)
	in.onVM(t, "running/token", "its token is accepted by a TokenReview, as its ServiceAccount's, bound to its pod", givesToken)
	in.onVM(t, "agent/status", "the agent's status file counts the pod as wired, and no other", in.statusCounts(1))
	in.onVM(t, "running/killed-server", "imds-server, killed, is restarted and answers", survivesKillOfServer)
	in.onVM(t, "running/killed-init", "imds-init, killed, is restarted; the guest is served all the while", survivesKillOfInit)
	in.onVM(t, "agent/replaced", "a roll-out replaces the agent's pod; the guest is served all the while, and wired by the new one", in.replaceAgent)
	in.onVM(t, "agent/kubelet", "the kubelet is restarted; the guest is served all the while, and wired by the same agent", in.restartKubelet)
	in.onVM(t, "agent/changed", "the overlay without the component gives new pods the sidecar, while the agent keeps what it has wired", in.changeBack)
	in.onVM(t, "agent/deleted", "with the agent's namespace deleted the guest is served, and wired again once the agent is back", in.deleteAgent)
	in.onVM(t, "running/end", "when compute ends, the pod completes", completes)
}

// agentProcess is the process of the agent that is there now.
func (in *installation) agentProcess(ctx context.Context) (*corev1.Pod, int, error) {
	pod, err := in.awaitAgent(ctx)
	if err != nil {
		return nil, 0, err
	}
	status, err := statusOf(pod, agentName)
	if err != nil {
		return nil, 0, err
	}
	container, err := in.cluster.Container(status.ContainerID)
	if err != nil {
		return nil, 0, err
	}
	pid, err := container.Pid()
	return pod, pid, err
}

func (in *installation) agentPrivileges(t *testing.T) {
	pod, pid, err := in.agentProcess(t.Context())
	check(t, err)
	checkPrivileges(t, agentName, pid, "0 0 0 0", "0", netAdminAndSysAdmin)
	for _, volume := range pod.Spec.Volumes {
		if volume.Projected != nil || volume.Secret != nil {
			t.Errorf("it has the volume %s", volume.Name)
		}
	}
	points, err := mounts(pid)
	check(t, err)
	for point := range points {
		if strings.HasPrefix(point, "/pods/") {
			t.Errorf("it sees %s", point)
		}
	}
}

// baseline sends a VM's pod through admission, and one with the capability of imds-init.
func (in *installation) baseline(t *testing.T) {
	stored, err := in.admit(t.Context(), launcherPod(t, in.site, "masquerade"))
	check(t, err)
	if got := stored.Annotations[wiredByAnnotation]; got != "node-agent" || len(sidecars(stored)) != 1 {
		t.Errorf("the pod is wired by %q, and has the sidecars %q", got, names(sidecars(stored)))
	}
	_, err = in.admit(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "privileged"},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "privileged", Image: "any",
			SecurityContext: &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}},
		}}},
	})
	expectRefusal(t, err, `violates PodSecurity "baseline`, "NET_ADMIN")
}

// statusCounts reads the status file as an operator does not need to: by the agent's root folder, since its image has no
// program that shows a file.
func (in *installation) statusCounts(wired int) func(*testing.T, *VM) {
	return func(t *testing.T, _ *VM) {
		_, pid, err := in.agentProcess(t.Context())
		check(t, err)
		check(t, kube.Poll(t.Context(), patience, func(context.Context) (string, error) {
			content, err := os.ReadFile(fmt.Sprintf("/proc/%d/root%s", pid, agentStatus))
			if err != nil {
				return "", err
			}
			var now struct {
				Wired           int
				Waiting, Failed map[string]int
			}
			if err := json.Unmarshal(content, &now); err != nil {
				return "", err
			}
			if now.Wired != wired || len(now.Waiting)+len(now.Failed) > 0 {
				return "it says " + string(content), nil
			}
			return "", nil
		}))
	}
}

// served has the guest ask all the while that something is done, and fails if an answer is missing.
func served(t *testing.T, v *VM, do func() error) {
	check(t, v.boot())
	ctx, stop := context.WithCancel(t.Context())
	asked, lost := 0, error(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ; ctx.Err() == nil; asked++ {
			if _, err := v.Ask(t.Context(), "/healthz"); err != nil {
				lost = errors.Join(lost, err)
			}
		}
	}()
	err := do()
	stop()
	<-done
	check(t, err)
	results.Figure(t, "%d answers", asked)
	if lost != nil || asked == 0 {
		t.Errorf("of %d requests: %v", asked, lost)
	}
}

// awaitConnected returns when imds-server has said, after a position of its log, that the agent has wired its pod.
func (v *VM) awaitConnected(ctx context.Context, position int) error {
	return kube.Poll(ctx, patience, func(ctx context.Context) (string, error) {
		log, err := v.log(ctx, serverContainer)
		if err != nil {
			return "", err
		}
		if !strings.Contains(log[min(position, len(log)):], `msg="wired by the agent of this node"`) {
			return "imds-server has not said that it is wired", nil
		}
		return "", nil
	})
}

func (in *installation) replaceAgent(t *testing.T, v *VM) {
	ctx := t.Context()
	before, err := in.awaitAgent(ctx)
	check(t, err)
	log, err := v.log(ctx, serverContainer)
	check(t, err)
	served(t, v, func() error {
		if _, err := in.kubectl(ctx, "rollout", "restart", "--namespace="+agentNamespace, "daemonset/"+agentName); err != nil {
			return err
		}
		if _, err := in.kubectl(ctx, "rollout", "status", "--namespace="+agentNamespace, "daemonset/"+agentName, "--timeout="+patience.String()); err != nil {
			return err
		}
		return v.awaitConnected(ctx, len(log))
	})
	after, err := in.awaitAgent(ctx)
	check(t, err)
	if after.UID == before.UID {
		t.Errorf("the pod %s is still there", after.Name)
	}
	in.statusCounts(1)(t, v)
}

func (in *installation) restartKubelet(t *testing.T, v *VM) {
	ctx := t.Context()
	before, pid, err := in.agentProcess(ctx)
	check(t, err)
	log, err := v.log(ctx, serverContainer)
	check(t, err)
	served(t, v, func() error { return in.cluster.RestartKubelet(ctx) })
	after, now, err := in.agentProcess(ctx)
	check(t, err)
	if now != pid || after.UID != before.UID {
		t.Errorf("the agent was process %d of %s, and is %d of %s", pid, before.Name, now, after.Name)
	}
	in.statusCounts(1)(t, v)
	later := ""
	// The kubelet is healthy before it gives logs.
	check(t, kube.Poll(ctx, patience, func(ctx context.Context) (problem string, _ error) {
		if later, err = v.log(ctx, serverContainer); err != nil {
			problem = err.Error()
		}
		return problem, nil
	}))
	if more := later[len(log):]; more != "" {
		t.Errorf("imds-server has said: %s", more)
	}
}

// changeBack applies the overlay without the component. The VM keeps its agent, and the next pod has the sidecar.
func (in *installation) changeBack(t *testing.T, v *VM) {
	ctx := t.Context()
	check(t, in.undoBaseline(ctx))
	replaced, err := in.webhookPods(ctx)
	check(t, err)
	served(t, v, func() error {
		if _, err := in.kubectl(ctx, "apply", "-k", in.folder+"/overlays/kind"); err != nil {
			return err
		}
		// Until they end they answer what comes by the API server's open connections.
		if err := in.awaitGone(ctx, replaced); err != nil {
			return err
		}
		return in.awaitAdmission(ctx)
	})
	stored, err := in.admit(ctx, launcherPod(t, in.site, "masquerade"))
	check(t, err)
	if got := stored.Annotations[wiredByAnnotation]; got != "sidecar" || len(sidecars(stored)) != 2 {
		t.Errorf("a new pod is wired by %q, and has the sidecars %q", got, names(sidecars(stored)))
	}
	in.statusCounts(1)(t, v)
}

// deleteAgent does what kustomize/README.md says is left to do at the end, and goes back.
func (in *installation) deleteAgent(t *testing.T, v *VM) {
	ctx := t.Context()
	log, err := v.log(ctx, serverContainer)
	check(t, err)
	served(t, v, func() error {
		if _, err := in.kubectl(ctx, "delete", "namespace", agentNamespace, "--timeout="+patience.String()); err != nil {
			return err
		}
		later, err := v.log(ctx, serverContainer)
		if err == nil && !strings.Contains(later[len(log):], "no agent of this node is connected") {
			err = fmt.Errorf("imds-server does not say that the agent is gone: %s", later[len(log):])
		}
		if err != nil {
			return err
		}
		if _, err := in.kubectl(ctx, "apply", "-k", in.path()); err != nil {
			return err
		}
		return v.awaitConnected(ctx, len(later))
	})
	check(t, in.awaitAdmission(ctx))
}

// undoBaseline lets the VMs' namespace have privileged pods again.
func (in *installation) undoBaseline(ctx context.Context) error {
	_, err := in.kubectl(ctx, "label", "namespace", tenant, "pod-security.kubernetes.io/enforce=privileged", "--overwrite")
	return err
}
