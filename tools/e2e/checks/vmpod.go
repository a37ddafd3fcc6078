package checks

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

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
