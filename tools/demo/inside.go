package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/tools/podnet"
	"github.com/example/kubevirt-imds/tools/podnet/kubelet"
)

// logs is the folder of the containers' logs.
func (h handover) logs() string { return filepath.Join(h.work, "logs") }

// openLog opens the log of a container, which may have been started before.
func (h handover) openLog(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(h.logs(), name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
}

// runInside is the second process.
func runInside(ctx context.Context, o options, h handover, stdout, stderr io.Writer) int {
	d := &demo{
		options:  o,
		handover: h,
		progress: newProgress(progressWriter(o, stdout, stderr)),
		document: document{Steps: []step{newStep("build", "", h.built)}},
	}
	code := 0
	err := d.run(ctx)
	if err != nil {
		code = exitFailed
		if errors.Is(err, errUnavailable) {
			code = exitUnavailable
		}
		d.document.Error = err.Error()
		fmt.Fprintln(stderr, "demo:", err)
	}
	d.document.OK = err == nil
	if o.json {
		if err := writeJSON(stdout, d.document); err != nil {
			fmt.Fprintln(stderr, "demo:", err)
			return exitFailed
		}
	}
	return code
}

// errUnavailable: it is this machine that stands in the way.
var errUnavailable = errors.New("the demo cannot run here")

type demo struct {
	options  options
	handover handover
	progress *progress
	document document

	api       *apiServer
	node      *kubelet.Node
	scenarios []*scenario
}

func (d *demo) run(ctx context.Context) (err error) {
	if err := podnet.Available(); err != nil {
		return fmt.Errorf("%w: %w", errUnavailable, err)
	}
	private := filepath.Join(d.handover.work, "private")
	if err := makePrivate(private); err != nil {
		return err
	}
	if err := os.Mkdir(d.handover.logs(), 0o755); err != nil {
		return err
	}
	d.document.RunsAs = runsAs()
	var hook *webhook
	err = d.step(&d.document.Steps, "webhook", func() (string, error) {
		hook, err = startWebhook(ctx, d.handover, filepath.Join(private, "webhook"))
		return "imds-webhook on TLS, with the patches of kustomize/sidecar", err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hook.stop()) }()

	d.api, err = newAPIServer(hook.network, map[string]string{webhookService: webhookAddress}, hook.caBundle)
	if err != nil {
		return err
	}
	d.node = &kubelet.Node{
		Images: map[string]string{serverImage: d.handover.imageFolder(serverImage)},
		Folder: filepath.Join(private, "pods"),
		Token:  d.api.token,
		Log: func(pod *corev1.Pod, container string) (io.WriteCloser, error) {
			return d.handover.openLog(pod.Name + "." + container)
		},
	}
	return d.runAll(ctx)
}

// runAll runs a scenario for each binding, one after the other. The networks are
// removed when all is over: the kernel takes a while for that, during which it
// changes no other network, and a measurement would show it.
func (d *demo) runAll(ctx context.Context) error {
	var failures []error
	for _, binding := range d.options.bindings {
		s := newScenario(d, binding)
		d.scenarios = append(d.scenarios, s)
		failures = append(failures, s.run(ctx))
		if !d.options.keep {
			failures = append(failures, s.end())
		}
	}
	if d.options.keep && errors.Join(failures...) == nil {
		failures = append(failures, d.keep(ctx))
	}
	for _, s := range d.scenarios {
		failures = append(failures, s.end(), s.close())
	}
	return errors.Join(failures...)
}

// step takes a step and adds it to a list.
func (d *demo) step(list *[]step, name string, take func() (string, error)) error {
	s, err := d.progress.step(name, take)
	*list = append(*list, s)
	return err
}

// makePrivate makes a folder that only this process and its children see, and
// that is gone with them. Nothing else that we mount is seen outside either.
func makePrivate(folder string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("demo", folder, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return fmt.Errorf("private folder: %w", err)
	}
	return nil
}

// runsAs says who we are on the machine.
func runsAs() string {
	uidMap, err := os.ReadFile("/proc/self/uid_map")
	var inside, outside, length uint64
	if _, scan := fmt.Sscan(string(uidMap), &inside, &outside, &length); err == nil && scan == nil && length > 1 {
		return "root"
	}
	return "user namespace"
}
