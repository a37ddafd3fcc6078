package checks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/cgroup"
)

// The VM whose pod runs.
const (
	vmName         = "pg-main"
	vmAccount      = "pg"
	vmAudience     = "vault"
	vmTokenSeconds = 600

	instancesPath = "/apis/kubevirt.io/v1/namespaces/" + tenant + "/virtualmachineinstances"
	accountsPath  = "/api/v1/namespaces/" + tenant + "/serviceaccounts"

	// computeImage waits to be told to end; it is on the node for the sake of pods' namespaces.
	computeImage = "localhost/pause:1"
)

// VM is a VM's pod that a kubelet runs.
type VM struct {
	// Ask asks in the guest for a path such as /v1/token and returns the body of the answer, which is an error if
	// it is not 200. nil: there is no guest yet.
	Ask func(ctx context.Context, path string) ([]byte, error)

	site    *site
	pod     *corev1.Pod // as it was when all of it ran for the first time
	network *podnet.Pod // the pod's; its guest is the stand-in for one
}

// startVM does what KubeVirt does until virt-launcher runs: the VMI, and its pod.
func (in *installation) startVM(ctx context.Context) (*VM, error) {
	if _, err := createUndo(ctx, in, accountsPath, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: vmAccount}}); err != nil {
		return nil, err
	}
	// The garbage collector deletes a pod whose owner is not there.
	owner, err := createUndo(ctx, in, instancesPath, &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "kubevirt.io/v1", Kind: "VirtualMachineInstance"},
		ObjectMeta: metav1.ObjectMeta{Name: vmName},
	})
	if err != nil {
		return nil, err
	}
	pod, err := in.readPod("dedicated-cpus")
	if err != nil {
		return nil, err
	}
	makeRunnable(pod, owner.UID)
	created, err := createUndo(ctx, in, podsPath, pod)
	if err != nil {
		return nil, err
	}
	v := &VM{site: in.site, pod: created}
	if v.pod, err = kube.Await(ctx, in.api, podsPath, created.Name, patience, runningLacks); err != nil {
		return nil, err
	}
	compute, err := v.process(ctx, "compute")
	if err != nil {
		return nil, err
	}
	network, err := podnet.NamespaceOf(compute)
	if err != nil {
		return nil, err
	}
	if v.network, err = podnet.Adopt(network); err != nil {
		return nil, errors.Join(err, network.Close())
	}
	in.undo = append(in.undo, func(context.Context) error { return v.close() })
	return v, nil
}

// createUndo creates an object that is deleted again when the overlay is.
func createUndo[T any, P interface {
	*T
	metav1.Object
}](ctx context.Context, in *installation, collection string, object P) (*T, error) {
	created, err := kube.Create(ctx, in.api, collection, (*T)(object))
	if err != nil {
		return nil, err
	}
	name := P(created).GetName()
	in.undo = append(in.undo, func(ctx context.Context) error {
		if err := in.api.Delete(ctx, collection+"/"+name); err != nil && !kube.IsNotFound(err) {
			return err
		}
		return kube.AwaitGone(ctx, in.api, collection, name, patience)
	})
	return created, nil
}

// makeRunnable takes out of a virt-launcher pod what only a node with KubeVirt has, and leaves the rest.
func makeRunnable(pod *corev1.Pod, owner types.UID) {
	pod.OwnerReferences[0].UID = owner
	pod.Annotations[prefix+"token-audiences"] = vmAudience
	pod.Annotations[prefix+"token-expiration-seconds"] = fmt.Sprint(vmTokenSeconds)
	spec := &pod.Spec
	spec.ServiceAccountName = vmAccount
	spec.NodeSelector, spec.Affinity, spec.ReadinessGates = nil, nil, nil
	spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v corev1.Volume) bool { return v.PersistentVolumeClaim != nil })
	grace := int64(5)
	spec.TerminationGracePeriodSeconds = &grace
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			c := &containers[i]
			c.Image, c.Command, c.Args, c.VolumeDevices = computeImage, []string{"/pause"}, nil, nil
			// Guaranteed as it was, with CPUs that the node has.
			given := corev1.ResourceList{
				corev1.ResourceCPU:    resource.MustParse("50m"),
				corev1.ResourceMemory: resource.MustParse("64Mi"),
			}
			c.Resources = corev1.ResourceRequirements{Requests: given, Limits: given}
		}
	}
}

// runningLacks says what keeps a pod from being all there.
func runningLacks(pod *corev1.Pod) string {
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if status.State.Running == nil {
			return fmt.Sprintf("container %s does not run: %+v", status.Name, status.State)
		}
	}
	if pod.Status.Phase != corev1.PodRunning {
		return "its phase is " + string(pod.Status.Phase)
	}
	return ""
}

// status is what the kubelet says of a container now.
func (v *VM) status(ctx context.Context, name string) (corev1.ContainerStatus, error) {
	pod, err := kube.Get[corev1.Pod](ctx, v.site.api, podsPath+"/"+v.pod.Name)
	if err != nil {
		return corev1.ContainerStatus{}, err
	}
	return statusOf(pod, name)
}

func statusOf(pod *corev1.Pod, name string) (corev1.ContainerStatus, error) {
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if status.Name == name {
			return status, nil
		}
	}
	return corev1.ContainerStatus{}, fmt.Errorf("pod %s has no container %s", pod.Name, name)
}

// container finds the cgroup of a container of the pod, as it runs now.
func (v *VM) container(ctx context.Context, name string) (*cgroup.Group, error) {
	status, err := v.status(ctx, name)
	if err != nil {
		return nil, err
	}
	return v.site.cluster.Container(status.ContainerID)
}

// process is the first process of a container that runs now, as the machine numbers it.
func (v *VM) process(ctx context.Context, name string) (int, error) {
	c, err := v.container(ctx, name)
	if err != nil {
		return 0, err
	}
	return c.Pid()
}

// log is what a container has written, each line after the time at which the node had it.
func (v *VM) log(ctx context.Context, name string) (string, error) {
	log, err := v.site.api.Request(http.MethodGet, podsPath+"/"+v.pod.Name+"/log").
		Param("container", name).Param("timestamps", "true").DoRaw(ctx)
	return string(log), err
}

// close stops the guest and lets go of the pod's network.
func (v *VM) close() error { return v.network.Close() }

// boot wires the pod and starts the stand-in for a guest, unless that is done.
func (v *VM) boot() error {
	if v.Ask != nil {
		return nil
	}
	if err := v.network.Wire(); err != nil {
		return err
	}
	if err := v.network.StartGuest(); err != nil {
		return err
	}
	v.Ask = v.fromGuest().ask
	return nil
}

// fromPod asks from the pod itself, as the liveness probe does, and fromGuest from the guest.
func (v *VM) fromPod() dialer   { return v.network.Pod.Dial }
func (v *VM) fromGuest() dialer { return v.network.Guest.Dial }

// StartVM installs the product in a cluster that is there for this check alone, with the component node-agent or
// without it, and starts a VM's pod, whose network is wired for masquerade binding. The guest is the caller's part, on
// the tap tap0 of that network.
func StartVM(t *testing.T, c *cluster.Cluster, withAgent bool, out io.Writer) *VM {
	s, err := openSite(t.Context(), c, out)
	check(t, err)
	t.Cleanup(func() { check(t, s.close(context.WithoutCancel(t.Context()))) })
	o := kind
	if withAgent {
		o = nodeAgent
	}
	in := newInstallation(t.Context(), s, o)
	in.install(t)
	v, err := in.vm()
	check(t, err)
	t.Cleanup(func() { check(t, v.close()) })
	t.Cleanup(func() {
		if t.Failed() {
			v.Explain(t)
		}
	})
	check(t, v.network.Wire())
	return v
}

// Process is the first process of a container that runs now, as the machine numbers it.
func (v *VM) Process(ctx context.Context, container string) (int, error) {
	return v.process(ctx, container)
}

// Containers are the names of those in the pod, in the order in which they start: the VM's own is the last.
func (v *VM) Containers() []string {
	return append(names(v.pod.Spec.InitContainers), names(v.pod.Spec.Containers)...)
}

// Delete deletes the pod and returns when each of Containers had ended.
func (v *VM) Delete(ctx context.Context) ([]time.Time, error) {
	var processes []unix.PollFd
	for _, name := range v.Containers() {
		pid, err := v.process(ctx, name)
		if err != nil {
			return nil, err
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return nil, fmt.Errorf("process of %s: %w", name, err)
		}
		defer unix.Close(fd)
		processes = append(processes, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	if err := v.site.api.Delete(ctx, podsPath+"/"+v.pod.Name); err != nil {
		return nil, err
	}
	return awaitEnds(processes)
}

// endTime is how long that may take: the kubelet, whose watch of its pods has failed while the API server was away,
// rests for up to a minute before it tries again.
const endTime = 3 * time.Minute

// awaitEnds returns when each process had ended, by its file descriptor.
func awaitEnds(processes []unix.PollFd) ([]time.Time, error) {
	ends := make([]time.Time, len(processes))
	for left := len(processes); left > 0; {
		n, err := unix.Poll(processes, int(endTime.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, fmt.Errorf("%d containers have not ended within %s", left, endTime)
		}
		for i := range processes {
			if processes[i].Fd >= 0 && processes[i].Revents != 0 {
				ends[i] = time.Now()
				processes[i].Fd = -1 // poll(2) leaves it out
				left--
			}
		}
	}
	return ends, nil
}

// Kill kills a sidecar, does something at once, and returns when the kubelet has restarted it.
func (v *VM) Kill(ctx context.Context, name string, atOnce func() error) error {
	return v.site.kill(ctx, podsPath, v.pod.Name, name, atOnce)
}

// KillInit does so with imds-init, in the pod or on its node.
func (v *VM) KillInit(ctx context.Context, atOnce func() error) error {
	if len(sidecars(v.pod)) == 2 {
		return v.Kill(ctx, initContainer, atOnce)
	}
	agent, err := v.site.awaitAgent(ctx)
	if err != nil {
		return err
	}
	return v.site.kill(ctx, agentPods, agent.Name, agentName, atOnce)
}

func (s *site) kill(ctx context.Context, pods, pod, name string, atOnce func() error) error {
	now, err := kube.Get[corev1.Pod](ctx, s.api, pods+"/"+pod)
	if err != nil {
		return err
	}
	before, err := statusOf(now, name)
	if err != nil {
		return err
	}
	container, err := s.cluster.Container(before.ContainerID)
	if err != nil {
		return err
	}
	pid, err := container.Pid()
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	if err := atOnce(); err != nil {
		return err
	}
	_, err = kube.Await(ctx, s.api, pods, pod, patience, func(pod *corev1.Pod) string {
		status, err := statusOf(pod, name)
		switch {
		case err != nil:
			return err.Error()
		case status.RestartCount == before.RestartCount || status.State.Running == nil:
			return fmt.Sprintf("%s is not restarted: %+v", name, status.State)
		}
		return runningLacks(pod)
	})
	return err
}

// Explain shows the state of the pod and what its sidecars have logged.
func (v *VM) Explain(t *testing.T) {
	ctx := context.Background()
	if output, err := v.site.kubectl(ctx, "logs", "--namespace="+agentNamespace, "daemonset/"+agentName); err == nil {
		t.Logf("the node agent:\n%s", output)
	}
	for _, sidecar := range sidecars(v.pod) {
		name := sidecar.Name
		status, err := v.status(ctx, name)
		t.Logf("%s: %d restarts, %+v (%v)", name, status.RestartCount, status.State, err)
		log, err := v.log(ctx, name)
		t.Logf("%s (%v)", strings.TrimSpace(log), err)
	}
}

func tellsIdentity(t *testing.T, v *VM) {
	check(t, v.boot())
	check(t, v.CheckIdentity(t.Context()))
}

// CheckIdentity asks the guest who it is.
func (v *VM) CheckIdentity(ctx context.Context) error {
	body, err := v.Ask(ctx, "/v1/identity")
	if err != nil {
		return err
	}
	var got map[string]string
	if err := json.Unmarshal(body, &got); err != nil {
		return err
	}
	want := map[string]string{
		"namespace":          tenant,
		"serviceAccountName": vmAccount,
		"vmName":             vmName,
		"podName":            v.pod.Name,
		"vmiUID":             string(v.pod.OwnerReferences[0].UID),
		"nodeName":           v.pod.Spec.NodeName,
	}
	if !maps.Equal(got, want) {
		return fmt.Errorf("it is told %v, want %v", got, want)
	}
	return nil
}

func givesToken(t *testing.T, v *VM) {
	check(t, v.boot())
	check(t, v.CheckToken(t.Context()))
}

// CheckToken shows the guest's token to the API server.
func (v *VM) CheckToken(ctx context.Context) error {
	token, err := v.askToken(ctx, "")
	if err != nil {
		return err
	}
	status, err := v.review(ctx, token)
	if err != nil {
		return err
	}
	if !status.Authenticated {
		return fmt.Errorf("it is not accepted: %s", status.Error)
	}
	if want := "system:serviceaccount:" + tenant + ":" + vmAccount; status.User.Username != want {
		return fmt.Errorf("it is %s's, want %s's", status.User.Username, want)
	}
	for name, want := range map[string]string{
		"authentication.kubernetes.io/pod-name":  v.pod.Name,
		"authentication.kubernetes.io/pod-uid":   string(v.pod.UID),
		"authentication.kubernetes.io/node-name": v.pod.Spec.NodeName,
	} {
		if got := status.User.Extra[name]; !slices.Equal(got, []string{want}) {
			return fmt.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	return nil
}

func givesAudienceToken(t *testing.T, v *VM) {
	check(t, v.boot())
	token, err := v.askToken(t.Context(), vmAudience)
	check(t, err)
	status, err := v.review(t.Context(), token, vmAudience)
	check(t, err)
	if !status.Authenticated || !slices.Equal(status.Audiences, []string{vmAudience}) {
		t.Errorf("for %s it is not accepted: %+v", vmAudience, status)
	}
	status, err = v.review(t.Context(), token)
	check(t, err)
	if status.Authenticated {
		t.Errorf("the API server's own audience accepts it")
	}
}

// askToken asks in the guest for the token of an audience, or for the default one, and checks its lifetime.
func (v *VM) askToken(ctx context.Context, audience string) (string, error) {
	path := "/v1/token"
	if audience != "" {
		path += "?" + url.Values{"audience": {audience}}.Encode()
	}
	body, err := v.Ask(ctx, path)
	if err != nil {
		return "", err
	}
	var answer struct {
		Token               string
		ExpirationTimestamp time.Time
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", err
	}
	if left := time.Until(answer.ExpirationTimestamp); left <= 0 || left > vmTokenSeconds*time.Second {
		return "", fmt.Errorf("it expires in %s, want at most %d s", left, vmTokenSeconds)
	}
	return answer.Token, nil
}

// review has the API server say whose a token is, for the audiences or for its own.
func (v *VM) review(ctx context.Context, token string, audiences ...string) (authenticationv1.TokenReviewStatus, error) {
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences}}
	answer, err := kube.Create(ctx, v.site.api, "/apis/authentication.k8s.io/v1/tokenreviews", review)
	if err != nil {
		return authenticationv1.TokenReviewStatus{}, err
	}
	return answer.Status, nil
}

// endpoint is where a guest finds the product.
const endpoint = "http://169.254.169.254"

// dialer connects from somewhere: from the pod, or from the guest.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// client makes each request by a connection of its own, as successive runs of curl do.
func (dial dialer) client() *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
}

// ask returns the body of the answer to a GET. A status other than 200 is an error.
func (dial dialer) ask(ctx context.Context, path string) ([]byte, error) {
	return get(ctx, dial.client(), endpoint+path)
}

func get(ctx context.Context, client *http.Client, address string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", address, response.Status, body)
	}
	return body, err
}

// awaitAnswer asks for the endpoint's health until there is an answer, since nothing tells when that will be, and
// returns how long it took. It does not wait long for a connection: the kernel sends a frame that was lost before
// the way was there again only after a second.
func (dial dialer) awaitAnswer(ctx context.Context) (time.Duration, error) {
	const (
		connectTime = 5 * time.Millisecond
		pause       = time.Millisecond
	)
	hasty := dialer(func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, stop := context.WithTimeout(ctx, connectTime)
		defer stop()
		return dial(ctx, network, address)
	})
	begin := time.Now()
	for {
		_, err := hasty.ask(ctx, "/healthz")
		took := time.Since(begin)
		if err == nil || took > patience || ctx.Err() != nil {
			return took, err
		}
		time.Sleep(pause)
	}
}
