package checks

import (
	"context"
	_ "embed"
	"fmt"
	"net"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/results"
	"github.com/example/kubevirt-imds/tools/podnet"
)

//go:embed pod.yaml
var realPod string

// The cluster is a real one: its kubelet, its container runtime and its API server do what the sidecars depend on.
func TestCluster(t *testing.T) {
	if *kubeconfig != "" {
		t.Skip("it takes a cluster of its own")
	}
	var facts map[string]string
	if !results.Skipping() {
		facts = realPodFacts(t)
	}
	for _, c := range []struct{ fact, want, proves string }{
		{"network Uid", "0", "a container of uid 0 starts"},
		{"network CapEff", "0000000000001000", "it has NET_ADMIN and no other capability"},
		{"network Seccomp", "2", "seccomp profile RuntimeDefault is in force"},
		{"network NoNewPrivs", "1", "privilege escalation is off"},
		{"server Uid", "65532", "a container of another uid starts beside it"},
		{"server CapEff", "0000000000000000", "it has no capability"},
		{"server CapBnd", "0000000000000000", "and can get none"},
		{"server Seccomp", "2", "seccomp profile RuntimeDefault is in force there too"},
		{"token mode", "-rw-r-----", "the projected token is not for everybody"},
		{"token owner", "0:107", "it belongs to the pod's fsGroup"},
		{"token served", "true", "which every container has; the pod's sysctl gives port 80 to uid 65532"},
		{"sidecars first", "true", "native sidecars are up before the pod's regular container starts"},
		{"token authenticated", "true", "a TokenReview, sent through the Service of the API, accepts the token"},
		{"token user", "system:serviceaccount:smoke:guest", "as the ServiceAccount's"},
		{"token audiences", "smoke", "for the audience of the volume"},
	} {
		results.Check(t, "cluster", c.fact, c.proves, func(t *testing.T) {
			if got := facts[c.fact]; got != c.want {
				t.Errorf("it is %q, want %q", got, c.want)
			}
		})
	}
}

// realPodFacts runs the pod and looks at it from outside, and from its network.
func realPodFacts(t *testing.T) map[string]string {
	ctx, facts := t.Context(), map[string]string{}
	_, err := here.kubectlWith(ctx, realPod, "apply", "--filename=-")
	check(t, err)
	t.Cleanup(func() {
		_, err := here.kubectlWith(context.WithoutCancel(ctx), realPod, "delete", "--filename=-")
		check(t, err)
	})
	pod, err := kube.Await(ctx, here.api, "/api/v1/namespaces/smoke/pods", "smoke", patience, runningLacks)
	check(t, err)
	pids := map[string]int{}
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		container, err := here.cluster.Container(status.ContainerID)
		check(t, err)
		pids[status.Name], err = container.Pid()
		check(t, err)
	}
	for name, pid := range pids {
		status, err := cluster.ProcessStatus(pid)
		check(t, err)
		status["Uid"], _, _ = strings.Cut(status["Uid"], " ")
		for line, value := range status {
			facts[name+" "+line] = value
		}
	}
	serverStart, err := cluster.ProcessStart(pids["server"])
	check(t, err)
	computeStart, err := cluster.ProcessStart(pids["compute"])
	check(t, err)
	facts["sidecars first"] = fmt.Sprint(serverStart.Before(computeStart))

	const tokenFile = "/var/run/secrets/tokens/token"
	file := path.Join(fmt.Sprintf("/proc/%d/root", pids["server"]), tokenFile)
	info, err := os.Stat(file)
	check(t, err)
	owner := info.Sys().(*syscall.Stat_t)
	facts["token mode"], facts["token owner"] = info.Mode().String(), fmt.Sprintf("%d:%d", owner.Uid, owner.Gid)
	token, err := os.ReadFile(file)
	check(t, err)
	network, err := podnet.NamespaceOf(pids["compute"])
	check(t, err)
	defer network.Close()
	served, err := get(ctx, dialer(network.Dial).client(), "http://127.0.0.1"+tokenFile)
	check(t, err)
	facts["token served"] = fmt.Sprint(string(served) == string(token))

	review, err := kube.Create(ctx, asCompute(t, pids["compute"], network), "/apis/authentication.k8s.io/v1/tokenreviews",
		&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: string(token), Audiences: []string{"smoke"}}})
	check(t, err)
	facts["token authenticated"] = fmt.Sprint(review.Status.Authenticated)
	facts["token user"], facts["token audiences"] = review.Status.User.Username, strings.Join(review.Status.Audiences, ",")
	return facts
}

// asCompute is a client of the API like one in the pod: with the pod's token, by the Service.
func asCompute(t *testing.T, pid int, network *podnet.Namespace) *kube.Client {
	folder := fmt.Sprintf("/proc/%d/root/var/run/secrets/api/", pid)
	token, err := os.ReadFile(folder + corev1.ServiceAccountTokenKey)
	check(t, err)
	authority, err := os.ReadFile(folder + corev1.ServiceAccountRootCAKey)
	check(t, err)
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	check(t, err)
	variables := map[string]string{}
	for variable := range strings.SplitSeq(string(environment), "\x00") {
		name, value, _ := strings.Cut(variable, "=")
		variables[name] = value
	}
	client, err := kube.New(&rest.Config{
		Host:            "https://" + net.JoinHostPort(variables["KUBERNETES_SERVICE_HOST"], variables["KUBERNETES_SERVICE_PORT"]),
		BearerToken:     string(token),
		TLSClientConfig: rest.TLSClientConfig{CAData: authority},
		Dial:            network.Dial,
	})
	check(t, err)
	return client
}
