package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/google/go-cmp/cmp"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/injector/selfsigned"
)

// effects tell of each component whether an installation, and a VM's pod that it
// injects, have what the component is for.
var effects = map[string]func(t *testing.T, r rendered, pod *corev1.Pod) bool{
	"cert-manager": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return r.certManager["Certificate/imds-webhook"] != nil && r.configuration.Annotations["cert-manager.io/inject-ca-from"] != ""
	},
	"fail-open": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return !slices.ContainsFunc(r.configuration.Webhooks, func(w admissionregistrationv1.MutatingWebhook) bool {
			return *w.FailurePolicy != admissionregistrationv1.Ignore
		})
	},
	"k0s": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return podsFolder(t, r) == "/var/lib/k0s/kubelet/pods"
	},
	"microk8s": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return podsFolder(t, r) == "/var/snap/microk8s/common/var/lib/kubelet/pods"
	},
	"metrics": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return r.custom["ServiceMonitor/imds-webhook"] != nil && len(r.service.Spec.Ports) == 2
	},
	"node-agent-metrics": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return r.custom["PodMonitor/imds-node-agent"] != nil && len(r.agent.daemonSet.Spec.Template.Spec.Containers) == 2
	},
	"node-agent": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return podsFolder(t, r) != "" && pod.Annotations[annotation.WiredBy] == annotation.WiredByNodeAgent
	},
	"node-agent-seccomp": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return hasOwnProfile(t, "node-agent-seccomp", r.agent.daemonSet.Spec.Template.Spec.Containers[0])
	},
	"openshift": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		own := r.agent.daemonSet.Spec.Template.Spec.SecurityContext
		return r.agent.constraints != nil && r.agent.binding != nil && own != nil && own.SELinuxOptions.Type == "spc_t"
	},
	"openshift-webhook": func(t *testing.T, r rendered, pod *corev1.Pod) bool { return r.constraints != nil },
	"policy": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return len(r.policies) == 2 && len(r.bindings) == 2
	},
	"readiness": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return serverIn(t, pod.Spec.InitContainers).ReadinessProbe != nil
	},
	"regular-containers": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return serverIn(t, pod.Spec.Containers).RestartPolicy == nil
	},
	"require-header": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return pod.Annotations[annotation.RequireHeader] == "true"
	},
	"seccomp": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return hasOwnProfile(t, "seccomp", serverIn(t, pod.Spec.InitContainers))
	},
	"self-signed": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return r.role != nil && slices.Contains(r.deployment.Spec.Template.Spec.Containers[0].Args, "--self-signed")
	},
	"single-replica": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return *r.deployment.Spec.Replicas == 1
	},
	"wait-for-imds": func(t *testing.T, r rendered, pod *corev1.Pod) bool {
		return serverIn(t, pod.Spec.InitContainers).StartupProbe != nil
	},
}

// after are the components that patch what another one brings.
var after = map[string]string{"node-agent-metrics": "node-agent", "node-agent-seccomp": "node-agent", "openshift": "node-agent", "k0s": "node-agent", "microk8s": "node-agent"}

// refusals are the pairs that are refused, by kustomize or by the webhook at its
// start, and a text of the message. The names are in order.
var refusals = map[[2]string]string{
	{"cert-manager", "self-signed"}:         "testing value /kind failed",
	{"k0s", "microk8s"}:                     "hostPath/path failed",
	{"node-agent", "regular-containers"}:    "nobody wires the pod",
	{"readiness", "regular-containers"}:     "the container imds-server twice",
	{"regular-containers", "seccomp"}:       "the container imds-server twice",
	{"regular-containers", "wait-for-imds"}: "the container imds-server twice",
}

// withNeeded puts before components what they patch.
func withNeeded(components ...string) []string {
	for _, component := range components {
		if needed := after[component]; needed != "" && !slices.Contains(components, needed) {
			return append([]string{needed}, components...)
		}
	}
	return components
}

// refusalOf is the text by which one of some components refuses another, or what it
// patches comes too late.
func refusalOf(components []string) string {
	for i, a := range components {
		for _, b := range components[i+1:] {
			pair := []string{a, b}
			slices.Sort(pair)
			if text := refusals[[2]string(pair)]; text != "" {
				return text
			}
			if after[a] == b {
				return "no resource matches strategic merge patch"
			}
		}
	}
	return ""
}

func TestEveryPairOfComponents(t *testing.T) {
	_, components := kustomizations(t)
	if diff := cmp.Diff(components, slices.Sorted(maps.Keys(effects))); diff != "" {
		t.Fatalf("components (-there +tested):\n%s", diff)
	}
	tree, served := loadTree(t), buildWith(t, "cert-manager")
	pods := map[string]*corev1.Pod{} // by the name of the ConfigMap, in which is a hash
	contents := map[string][]byte{}
	for _, a := range components {
		for _, b := range components {
			if a == b {
				continue
			}
			t.Run(a+","+b, func(t *testing.T) {
				list := withNeeded(a, b)
				refusal := refusalOf(list)
				content, err := tree.BuildWith("kustomize/base", list...)
				if err != nil {
					if refusal == "" || !strings.Contains(err.Error(), refusal) {
						t.Errorf("%v: want %q", err, refusal)
					}
					return
				}
				r := decode(t, content)
				// Whatever its certificate is, the webhook takes the patches or not.
				installed := served
				installed.patches = r.patches
				if refusal != "" {
					if message := refusedAtStart(t, installed); !strings.Contains(message, refusal) {
						t.Errorf("the webhook says %q, want %q", message, refusal)
					}
					return
				}
				if pods[r.patches.Name] == nil {
					pods[r.patches.Name] = runWebhook(t, installed).inject(t, launcherPod(map[string]string{annotation.Enabled: "true"}))
				}
				for _, component := range list {
					if !effects[component](t, r, pods[r.patches.Name]) {
						t.Errorf("%v: %s has no effect", list, component)
					}
				}
				contents[a+b] = content
				if other := contents[b+a]; other != nil && !bytes.Equal(content, other) {
					t.Errorf("in the other order it is another one:\n%s", cmp.Diff(string(other), string(content)))
				}
			})
		}
	}
}

// refusedAtStart is what the webhook of an installation says when it ends at its start.
func refusedAtStart(t *testing.T, r rendered) string {
	t.Helper()
	bundle, err := selfsigned.Issue(time.Hour, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	command := prepareWebhook(t, r, bundle)
	endless := time.AfterFunc(time.Minute, func() { command.Process.Kill() })
	defer endless.Stop()
	out, err := command.CombinedOutput()
	if _, ended := err.(*exec.ExitError); !ended {
		t.Fatalf("the webhook ended with %v: %s", err, out)
	}
	return string(out)
}

// hasOwnProfile says whether a container has the seccomp profile that is a file of a
// component.
func hasOwnProfile(t *testing.T, component string, container corev1.Container) bool {
	t.Helper()
	profile := container.SecurityContext.SeccompProfile
	if profile.Type != corev1.SeccompProfileTypeLocalhost {
		return false
	}
	folder, file := path.Split(*profile.LocalhostProfile)
	return folder == "imds/" && json.Valid([]byte(readFile(t, "kustomize/components/"+component+"/"+file)))
}

// podsFolder is where the agent of an installation looks on its node.
func podsFolder(t *testing.T, r rendered) string {
	t.Helper()
	if r.agent.daemonSet == nil {
		t.Fatal("no agent")
	}
	return r.agent.daemonSet.Spec.Template.Spec.Volumes[0].HostPath.Path
}
