package checks

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/example/kubevirt-imds/tools/e2e/cluster"
	"github.com/example/kubevirt-imds/tools/e2e/kube"
	"github.com/example/kubevirt-imds/tools/e2e/results"
)

var (
	withCluster = flag.Bool("cluster", false, "start a cluster for the tests, as root")
	kubeconfig  = flag.String("kubeconfig", "", "a cluster that is there already, with KubeVirt and the images in it, such as one of kind after\n"+
		"just kind-load: the overlay kind alone, and no pod that runs")
	keep = flag.Bool("keep", false, "leave each overlay installed after its checks until Ctrl-C")
)

// here is where the product is installed. Where all checks are skipped, nothing can be done with it.
var here = &site{cluster: new(cluster.Cluster)}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) (status int) {
	var closing func() error
	var err error
	switch ctx := context.Background(); {
	case *kubeconfig != "":
		results.Partial()
		here, err = openForeignSite(ctx, reaching(*kubeconfig), nil)
		closing = func() error { return here.close(ctx) }
	case *withCluster:
		closing, err = openOwnSite(ctx, &status)
	default:
		results.SkipAll("it needs a cluster: go test ./checks -cluster")
		return results.Main(m, "checks.txt", results.ByProof)
	}
	if err == nil {
		status = results.Main(m, "checks.txt", results.ByProof)
		err = closing()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status
}

// openOwnSite starts a cluster. The logs of it are kept if the status is not 0 in the end.
func openOwnSite(ctx context.Context, status *int) (closing func() error, err error) {
	c, err := cluster.Up(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	here, err = openSite(ctx, c, os.Stderr)
	if err != nil {
		return nil, errors.Join(err, c.Down(true))
	}
	return func() error { return errors.Join(here.close(ctx), c.Down(*status != 0)) }, nil
}

// The tests that follow are in this order: the last takes cert-manager's kinds away.

func TestOverlays(t *testing.T) {
	overlays := []overlay{kind, certManager, manual}
	if *kubeconfig != "" {
		overlays = overlays[:1]
	}
	for _, o := range overlays {
		t.Run(o.name, func(t *testing.T) {
			in := newInstallation(t.Context(), here, o)
			in.test(t)
		})
	}
}

func TestPolicy(t *testing.T) {
	if *kubeconfig != "" {
		t.Skip("it takes a cluster of its own")
	}
	results.Check(t, "policy", "alone", "the policies alone refuse who asks, say why, and leave others alone", here.policyAlone)
}

func TestUpgrade(t *testing.T) {
	if *kubeconfig != "" {
		t.Skip("it takes a cluster of its own")
	}
	u := newUpgrade(t, here)
	u.present.check(t, "forward", "VMs of the earlier version keep IMDS when they are migrated, stopped and started", u.forward)
	u.present.check(t, "back", "VMs of this version keep IMDS in the earlier one, after a rollback", u.goBack)
}

func TestKubeconfig(t *testing.T) {
	if *kubeconfig != "" {
		t.Skip("it takes a cluster of its own")
	}
	results.Check(t, "kubeconfig", "others", "-kubeconfig passes without cert-manager, while other people's objects come and go", here.checksAmongOthers)
}

// test installs the overlay, does all its checks, and deletes it.
func (in *installation) test(t *testing.T) {
	in.outage = sync.OnceValue(func() error { return in.beginOutage(t.Context()) })
	defer in.must(t, "remove", "kubectl delete -k leaves nothing behind", in.remove)
	in.must(t, "install", "kubectl apply -k, without a warning, gives an admitting webhook", in.install)
	if t.Failed() {
		return
	}
	for _, group := range []struct {
		name string
		test func(*testing.T)
	}{
		{"manifests", in.testManifests}, {"rights", in.testRights}, {"pods", in.testPods}, {"limits", in.testLimits},
		{"vms", in.testVirtualMachines}, {"instances", in.testInstances}, {"running", in.testRunningPod},
		{"availability", in.testAvailability}, {"ca", in.testCABundle}, {"outage", in.testOutage},
	} {
		t.Run(group.name, group.test)
	}
	if *keep && !results.Skipping() {
		ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt)
		defer stop()
		fmt.Printf("%s is installed until Ctrl-C; %s\n", in.name, in.howToEnter())
		<-ctx.Done()
	}
}

// check runs a check, which tells more about the webhook when it fails.
func (in *installation) check(t *testing.T, name, proves string, run func(*testing.T)) {
	results.Check(t, in.subject, name, proves, func(t *testing.T) {
		t.Cleanup(func() {
			if t.Failed() {
				in.explain(t)
			}
		})
		run(t)
	})
}

// must is check for what is done even where -run leaves the check out, because others depend on it.
func (in *installation) must(t *testing.T, name, proves string, run func(*testing.T)) {
	done := results.Skipping()
	in.check(t, name, proves, func(t *testing.T) { done = true; run(t) })
	if !done {
		run(t)
	}
}

// howToEnter tells a person how to look around.
func (s *site) howToEnter() string {
	if s.cluster == nil {
		return "kubectl reaches it"
	}
	return "a shell in the cluster:\n" + s.cluster.ShellCommand()
}

// testManifests is about what was applied.
func (in *installation) testManifests(t *testing.T) {
	in.check(t, "manifests/again", "applied again, it changes nothing", in.applyAgain)
	in.check(t, "manifests/restricted", "its namespace enforces Pod Security restricted, and its pods are there", in.restricted)
	in.check(t, "manifests/package", "the kpt package passes a server-side dry run", in.applyPackage)
}

// applyAgain also shows that applying does not take the caBundle away.
func (in *installation) applyAgain(t *testing.T) {
	ctx := t.Context()
	// Kustomize breaks the lines of a Secret's values, so that manual conflicts with itself. It is not for GitOps.
	check(t, in.appliesAgain(ctx, in.path(), in.name != manual.name))
	_, err := in.admit(ctx, launcherPod(t, in.site, "masquerade"))
	check(t, err)
}

// appliesAgain applies what is there already, in the ways in which kubectl and, server-side, GitOps do.
func (s *site) appliesAgain(ctx context.Context, path string, serverSide bool) error {
	commands := [][]string{
		{"apply", "--dry-run=server"},
		// Not the output of apply: for a PodDisruptionBudget it always says "configured". A difference is an error.
		{"diff"},
		{"apply"},
	}
	if serverSide { // conflicts where a manifest writes a field otherwise than it is stored
		commands = append(commands,
			[]string{"apply", "--dry-run=server", "--server-side", "--field-manager=gitops"},
			[]string{"diff", "--server-side", "--field-manager=gitops"})
	}
	for _, command := range commands {
		if _, err := s.kubectl(ctx, append(command, "-k", path)...); err != nil {
			return err
		}
	}
	return nil
}

func (in *installation) restricted(t *testing.T) {
	ctx := t.Context()
	found, err := kube.Get[corev1.Namespace](ctx, in.api, "/api/v1/namespaces/"+namespace)
	check(t, err)
	for _, mode := range []string{"enforce", "audit", "warn"} {
		if got := found.Labels["pod-security.kubernetes.io/"+mode]; got != "restricted" {
			t.Errorf("the namespace's label for %s says %q, want restricted", mode, got)
		}
	}
	// That the labels are in force.
	unfit := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "unfit"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "unfit", Image: "unfit"}}},
	}
	_, err = kube.DryRun(ctx, in.api, webhookPods, unfit)
	expectRefusal(t, err, `violates PodSecurity "restricted`)

	pods, err := in.webhookPods(ctx)
	check(t, err)
	if len(pods) == 0 {
		t.Errorf("no pod of the webhook is there")
	}
	for _, pod := range pods {
		if pod.Status.Phase != corev1.PodRunning {
			t.Errorf("pod %s is %s", pod.Name, pod.Status.Phase)
		}
	}
}

// applyPackage applies the folder that kpt users fetch: the objects of cert-manager's overlay, at their defaults.
func (in *installation) applyPackage(t *testing.T) {
	rendered, err := in.kubectl(t.Context(), "kustomize", in.folder+"/kustomize")
	check(t, err)
	_, err = kube.Get[metav1.APIGroup](t.Context(), in.api, "/apis/"+certManagerGroup)
	if kube.IsNotFound(err) {
		objects := slices.DeleteFunc(strings.Split(rendered, "\n---\n"), func(object string) bool {
			return strings.Contains(object, "apiVersion: "+certManagerGroup+"/")
		})
		rendered = strings.Join(objects, "\n---\n")
		t.Logf("the objects of %s are left out: this cluster has no cert-manager", certManagerGroup)
	} else {
		check(t, err)
	}
	_, err = in.kubectlWith(t.Context(), rendered, "apply", "--dry-run=server", "--filename=-")
	check(t, err)
}

// expectRefusal fails the check if there was no refusal, or not with the words.
func expectRefusal(t *testing.T, err error, words ...string) {
	var refused *kube.Refusal
	if !errors.As(err, &refused) {
		t.Errorf("error %v, want a refusal that says %q", err, words)
		return
	}
	for _, word := range words {
		if !strings.Contains(refused.Status.Message, word) {
			t.Errorf("the refusal does not say %q: %s", word, refused.Status.Message)
		}
	}
}

// remove deletes what install applied.
func (in *installation) remove(t *testing.T) {
	ctx := context.WithoutCancel(t.Context())
	for _, undo := range slices.Backward(in.undo) {
		check(t, undo(ctx))
	}
	_, err := in.kubectl(ctx, "delete", "-k", in.path(), "--timeout="+patience.String())
	check(t, err)
	after, err := in.takeSnapshot(ctx)
	check(t, err)
	if left := after.less(in.before); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	if lost := in.before.less(after); len(lost) > 0 {
		t.Errorf("gone, but not the overlay's:\n%s", strings.Join(lost, "\n"))
	}
}
