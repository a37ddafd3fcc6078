package conditions

import (
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// others is a VM that never asked.
const others = `
metadata: {annotations: {example.com/owner: team-a}}
spec:
  runStrategy: Always
  template:
    metadata: {annotations: {example.com/owner: team-a}}
    spec:
      domain: {devices: {interfaces: [{name: default, masquerade: {}}]}}
      networks: [{name: default, pod: {}}]`

// asking is a VM that asked, as it is once the webhook has seen it.
const asking = `
metadata: {annotations: {imds.kubevirt.io/enabled: "true", imds.kubevirt.io/hop-limit: "1"}}
spec:
  runStrategy: Always
  template:
    metadata: {annotations: {imds.kubevirt.io/enabled: "true", imds.kubevirt.io/hop-limit: "1"}}
    spec:
      domain: {devices: {interfaces: [{name: default, masquerade: {}}]}}
      networks: [{name: default, pod: {}}]`

// askingByTemplate is one whose annotations are in its template only.
const askingByTemplate = `
spec:
  template:
    metadata: {annotations: {imds.kubevirt.io/enabled: "true"}}
    spec: {networks: [{name: default, pod: {}}]}`

// declining is one that turned it off.
const declining = `
metadata: {annotations: {imds.kubevirt.io/enabled: "false"}}
spec:
  template:
    metadata: {annotations: {imds.kubevirt.io/enabled: "false"}}
    spec: {networks: [{name: default, pod: {}}]}`

// admittedOnce is one that an older or newer version let in.
const admittedOnce = `
metadata: {annotations: {imds.kubevirt.io/enabled: "yes", imds.kubevirt.io/hop-limit: "0", imds.kubevirt.io/of-tomorrow: "1"}}
spec:
  template:
    metadata: {annotations: {imds.kubevirt.io/enabled: "yes", imds.kubevirt.io/hop-limit: "0", imds.kubevirt.io/of-tomorrow: "1"}}`

// plain is an instance that never asked, served one that did and was reviewed, and
// unreviewed one without a verdict.
const (
	plain = `
metadata: {annotations: {example.com/owner: team-a}}
spec: {networks: [{name: default, pod: {}}], domain: {devices: {interfaces: [{name: default, passt: {}}]}}}`
	served = `
metadata: {annotations: {imds.kubevirt.io/enabled: "true", imds.kubevirt.io/network: default, verdict.imds.kubevirt.io/wiring: redirect,
  verdict.imds.kubevirt.io/bridge-name: k6t-eth0, imds.kubevirt.io/redirect-port: "60080"}}
spec: {networks: [{name: default, pod: {}}], domain: {devices: {interfaces: [{name: default, passt: {}}]}}}`
	unreviewed = `
metadata: {annotations: {imds.kubevirt.io/enabled: "true"}}
spec: {networks: [{name: default, pod: {}}], domain: {devices: {interfaces: [{name: default, masquerade: {}}]}}}`
)

// manyAnnotations have more names than are walked.
func manyAnnotations() map[string]string {
	annotations := map[string]string{}
	for i := range 65 {
		annotations["example.com/"+string(rune('a'+i%26))+string(rune('a'+i/26))] = ""
	}
	return annotations
}

func TestVirtualMachinesThatAreCreated(t *testing.T) {
	server := newAPIServer(t)
	for name, test := range map[string]struct{ vm, want string }{
		"never asked":                          {others, ""},
		"without a spec":                       {`{}`, ""},
		"asks":                                 {`metadata: {annotations: {imds.kubevirt.io/enabled: "true"}}`, refuseVMs},
		"asks in its template":                 {askingByTemplate, refuseVMs},
		"wrong value":                          {`metadata: {annotations: {imds.kubevirt.io/enabled: "yes"}}`, refuseVMs},
		"not a string":                         {`spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: true}}}}`, refuseVMs},
		"not a string either":                  {`spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: false}}}}`, refuseVMs},
		"null":                                 {`spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: null}}}}`, refuseVMs},
		"another annotation of ours":           {`metadata: {annotations: {imds.kubevirt.io/network: nic1}}`, refuseVMs},
		"misspelt":                             {`metadata: {annotations: {imds.kubevirt.io/enable: "true"}}`, refuseVMs},
		"misspelt in its template":             {`spec: {template: {metadata: {annotations: {imds.kubevirt.io/Enabled: "true"}}}}`, refuseVMs},
		"declines":                             {`metadata: {annotations: {imds.kubevirt.io/enabled: "false"}}`, repairVMs},
		"declines, and so does its template":   {`{metadata: {annotations: {imds.kubevirt.io/enabled: "false"}}, spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: "false"}}}}}`, ""},
		"declines in its template":             {`spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: "false", imds.kubevirt.io/hop-limit: "0"}}}}`, ""},
		"declines, but its template asks":      {`{metadata: {annotations: {imds.kubevirt.io/enabled: "false"}}, spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: "true"}}}}}`, repairVMs},
		"asks, but its template declines":      {`{metadata: {annotations: {imds.kubevirt.io/enabled: "true"}}, spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: "false"}}}}}`, refuseVMs},
		"another project's annotation":         {`metadata: {annotations: {ximds.kubevirt.io/enabled: "true", imds.kubevirt.io: "true", kubevirt.io/enabled: "true"}}`, ""},
		"annotations of the template are null": {`{metadata: {annotations: {imds.kubevirt.io/enabled: "true"}}, spec: {template: {metadata: {annotations: null}}}}`, refuseVMs},
	} {
		t.Run(name, func(t *testing.T) {
			server.expect(t, request{object: vm(test.vm)}, test.want)
			server.expect(t, request{object: merged(vm(test.vm), forgedEnd)}, test.want)
		})
	}
}

// forgedEnd is what a client may state of what it creates.
const forgedEnd = `metadata: {deletionTimestamp: "2026-01-01T00:00:00Z"}`

func TestVirtualMachinesThatAreUpdated(t *testing.T) {
	server := newAPIServer(t)
	writes := []struct{ name, patch string }{
		{"stop", `spec: {runStrategy: Halted}`},
		{"start", `spec: {runStrategy: Always}`},
		{"label", `metadata: {labels: {a: b}}`},
		{"label of the template", `spec: {template: {metadata: {labels: {a: b}}}}`},
		{"annotation of somebody else", `metadata: {annotations: {example.com/owner: team-b}}`},
		{"annotation of somebody else on the template", `spec: {template: {metadata: {annotations: {example.com/owner: team-b}}}}`},
		{"finalizer", `metadata: {finalizers: [example.com/hold]}`},
		{"disk", `spec: {template: {spec: {domain: {devices: {disks: [{name: data}]}}, volumes: [{name: data}]}}}`},
		{"status", `status: {ready: true, printableStatus: Running}`},
		{"noise", `metadata: {generation: 7, resourceVersion: "8", managedFields: [{manager: virt-controller}]}`},
		{"nothing", `{}`},
	}
	for name, base := range map[string]string{
		"never asked": others, "asks": asking, "asks in its template": askingByTemplate, "declines": declining, "admitted once": admittedOnce,
	} {
		for _, write := range writes {
			t.Run(name+"/"+write.name, func(t *testing.T) {
				server.expect(t, request{object: merged(vm(base), write.patch), old: vm(base)}, "")
			})
		}
	}

	for name, test := range map[string]struct{ old, patch, want string }{
		"asks now":                              {others, `metadata: {annotations: {imds.kubevirt.io/enabled: "true"}}`, refuseVMs},
		"asks now in its template":              {others, `spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: "true"}}}}`, refuseVMs},
		"misspelt":                              {others, `metadata: {annotations: {imds.kubevirt.io/enable: "true"}}`, refuseVMs},
		"value changed":                         {asking, `metadata: {annotations: {imds.kubevirt.io/hop-limit: "2"}}`, refuseVMs},
		"value changed in the template":         {asking, `spec: {template: {metadata: {annotations: {imds.kubevirt.io/hop-limit: "2"}}}}`, refuseVMs},
		"value changed in the template alone":   {askingByTemplate, `spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: "ja"}}}}`, refuseVMs},
		"network named":                         {asking, `metadata: {annotations: {imds.kubevirt.io/network: nic1}}`, refuseVMs},
		"value and interfaces changed":          {asking, `{metadata: {annotations: {imds.kubevirt.io/hop-limit: "2"}}, spec: {template: {spec: {networks: []}}}}`, refuseVMs},
		"a wrong value stays, another changes":  {admittedOnce, `metadata: {annotations: {imds.kubevirt.io/network: nic1}}`, refuseVMs},
		"declines now":                          {asking, `metadata: {annotations: {imds.kubevirt.io/enabled: "false"}}`, repairVMs},
		"declines now with a wrong value":       {asking, `metadata: {annotations: {imds.kubevirt.io/enabled: "false", imds.kubevirt.io/hop-limit: "0"}}`, repairVMs},
		"declines now in both places":           {asking, `{metadata: {annotations: {imds.kubevirt.io/enabled: "false"}}, spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: "false"}}}}}`, ""},
		"declines now in its template":          {askingByTemplate, `spec: {template: {metadata: {annotations: {imds.kubevirt.io/enabled: "false"}}}}`, ""},
		"taken away":                            {asking, `metadata: {annotations: {imds.kubevirt.io/enabled: null}}`, refuseVMs},
		"one setting taken away":                {asking, `metadata: {annotations: {imds.kubevirt.io/hop-limit: null}}`, refuseVMs},
		"all taken away":                        {asking, `metadata: {annotations: null}`, refuseVMs},
		"taken away in both places":             {asking, `{metadata: {annotations: null}, spec: {template: {metadata: {annotations: null}}}}`, ""},
		"taken away where it is alone":          {askingByTemplate, `spec: {template: {metadata: null}}`, ""},
		"the template's copy taken away":        {asking, `spec: {template: {metadata: {annotations: {imds.kubevirt.io/hop-limit: null}}}}`, refuseVMs},
		"the template's metadata taken away":    {asking, `spec: {template: {metadata: null}}`, refuseVMs},
		"networks":                              {asking, `spec: {template: {spec: {networks: [{name: default, multus: {networkName: a}}]}}}`, repairVMs},
		"interfaces":                            {asking, `spec: {template: {spec: {domain: {devices: {interfaces: [{name: default, state: absent, masquerade: {}}]}}}}}`, repairVMs},
		"no interface":                          {asking, `spec: {template: {spec: {domain: {devices: {autoattachPodInterface: false}}}}}`, repairVMs},
		"networks of one that asks by template": {askingByTemplate, `spec: {template: {spec: {networks: null}}}`, repairVMs},
		"networks of one that never asked":      {others, `spec: {template: {spec: {networks: []}}}`, ""},
		"networks of one that declines":         {declining, `spec: {template: {spec: {networks: []}}}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			changed := merged(vm(test.old), test.patch)
			server.expect(t, request{object: changed, old: vm(test.old)}, test.want)
			leaving := `metadata: {deletionTimestamp: "2026-01-01T00:00:00Z"}`
			server.expect(t, request{object: merged(changed, leaving), old: merged(vm(test.old), leaving)}, "")
		})
	}

	// What the webhook could not repair stays so until it can.
	outOfStep := merged(vm(asking), `spec: {template: {metadata: null}}`)
	for _, write := range writes {
		t.Run("out of step/"+write.name, func(t *testing.T) {
			server.expect(t, request{object: merged(outOfStep, write.patch), old: outOfStep}, repairVMs)
		})
	}
}

func TestInstances(t *testing.T) {
	server := newAPIServer(t)
	t.Run("create", func(t *testing.T) {
		server.expect(t, request{object: instance(plain)}, "")
		server.expect(t, request{object: instance(unreviewed)}, refuseInstances)
		server.expect(t, request{object: instance(`metadata: {annotations: {imds.kubevirt.io/enable: "true"}}`)}, refuseInstances)
		server.expect(t, request{object: instance(`metadata: {annotations: {imds.kubevirt.io/enabled: "false", imds.kubevirt.io/hop-limit: "0"}}`)}, "")
	})
	writes := []struct{ name, patch string }{
		{"status", `status: {phase: Running, interfaces: [{name: default, ipAddress: 10.0.0.1}]}`},
		{"label", `metadata: {labels: {kubevirt.io/nodeName: node1}}`},
		{"annotation of somebody else", `metadata: {annotations: {kubevirt.io/latest-observed-api-version: v1}}`},
		{"finalizer", `metadata: {finalizers: [foregroundDeleteVirtualMachine]}`},
		{"disk", `spec: {domain: {devices: {disks: [{name: data}]}}, volumes: [{name: data}]}`},
		{"noise", `metadata: {generation: 7, managedFields: [{manager: virt-handler}]}`},
		{"nothing", `{}`},
	}
	for _, write := range writes {
		for base, want := range map[string]string{plain: "", served: "", unreviewed: repairInstances} {
			t.Run(write.name, func(t *testing.T) {
				server.expect(t, request{object: merged(instance(base), write.patch), old: instance(base)}, want)
			})
		}
	}
	for name, test := range map[string]struct{ old, patch, want string }{
		"asks now":                            {plain, `metadata: {annotations: {imds.kubevirt.io/enabled: "true"}}`, refuseInstances},
		"misspelt":                            {plain, `metadata: {annotations: {imds.kubevirt.io/enable: "true"}}`, refuseInstances},
		"value changed":                       {served, `metadata: {annotations: {imds.kubevirt.io/network: nic1}}`, refuseInstances},
		"wrong opt-in":                        {served, `metadata: {annotations: {imds.kubevirt.io/enabled: flase}}`, refuseInstances},
		"value added before a verdict":        {unreviewed, `metadata: {annotations: {imds.kubevirt.io/network: default}}`, refuseInstances},
		"one setting taken away":              {served, `metadata: {annotations: {imds.kubevirt.io/network: null}}`, refuseInstances},
		"verdict changed":                     {served, `metadata: {annotations: {verdict.imds.kubevirt.io/wiring: bridge}}`, refuseInstances},
		"verdict taken away":                  {served, `metadata: {annotations: {verdict.imds.kubevirt.io/wiring: null}}`, refuseInstances},
		"verdict's bridge changed":            {served, `metadata: {annotations: {verdict.imds.kubevirt.io/bridge-name: k6t-net1}}`, refuseInstances},
		"verdict's port taken away":           {served, `metadata: {annotations: {imds.kubevirt.io/redirect-port: null}}`, refuseInstances},
		"verdict by somebody else":            {unreviewed, `metadata: {annotations: {verdict.imds.kubevirt.io/wiring: bridge}}`, refuseInstances},
		"value and networks changed":          {served, `{metadata: {annotations: {imds.kubevirt.io/network: nic1}}, spec: {networks: []}}`, refuseInstances},
		"declines now":                        {served, `metadata: {annotations: {imds.kubevirt.io/enabled: "false", imds.kubevirt.io/network: "?"}}`, ""},
		"taken away":                          {served, `metadata: {annotations: {imds.kubevirt.io/enabled: null}}`, ""},
		"all taken away":                      {served, `metadata: {annotations: null}`, ""},
		"networks":                            {served, `spec: {networks: []}`, repairInstances},
		"interfaces":                          {served, `spec: {domain: {devices: {interfaces: [{name: default, passt: {}, state: absent}]}}}`, repairInstances},
		"networks of one that never asked":    {plain, `spec: {networks: []}`, ""},
		"interfaces of one without a verdict": {unreviewed, `spec: {domain: {devices: {interfaces: []}}}`, repairInstances},
	} {
		t.Run(name, func(t *testing.T) {
			changed := merged(instance(test.old), test.patch)
			server.expect(t, request{object: changed, old: instance(test.old)}, test.want)
			leaving := `metadata: {deletionTimestamp: "2026-01-01T00:00:00Z"}`
			server.expect(t, request{object: merged(changed, leaving), old: merged(instance(test.old), leaving)}, "")
		})
	}
}

// TestNamesByKey: where nothing is walked, the known names are found all the same, those
// too that only the webhook may write.
func TestNamesByKey(t *testing.T) {
	server := newAPIServer(t)
	for _, name := range []string{"enabled", "network", "bridge-name", "token-audiences", "token-expiration-seconds", "require-header", "hop-limit",
		"redirect-port", "injected", "not-injected", "warnings", "wired-by", "version", "vm-name", "vmi-uid"} {
		annotations := manyAnnotations()
		before := vm(`{}`)
		before.SetAnnotations(annotations)
		after := vm(`{}`)
		annotations = maps.Clone(annotations)
		annotations["imds.kubevirt.io/"+name] = "x"
		after.SetAnnotations(annotations)
		server.expect(t, request{object: after}, refuseVMs)
		server.expect(t, request{object: after, old: before}, refuseVMs)
		byTemplate := func(annotations map[string]string) *unstructured.Unstructured {
			object := vm(`{}`)
			if err := unstructured.SetNestedStringMap(object.Object, annotations, "spec", "template", "metadata", "annotations"); err != nil {
				t.Fatal(err)
			}
			return object
		}
		server.expect(t, request{object: byTemplate(annotations)}, refuseVMs)
		server.expect(t, request{object: byTemplate(annotations), old: byTemplate(before.GetAnnotations())}, refuseVMs)
		after.SetGroupVersionKind(instanceKind)
		before.SetGroupVersionKind(instanceKind)
		server.expect(t, request{object: after}, refuseInstances)
		server.expect(t, request{object: after, old: before}, refuseInstances)
	}
}

func TestPods(t *testing.T) {
	server := newAPIServer(t)
	launcher := map[string]string{"kubevirt.io": "virt-launcher"}
	for name, test := range map[string]struct {
		labels, annotations map[string]string
		want                string
	}{
		"asks":                {launcher, map[string]string{"imds.kubevirt.io/enabled": "true"}, pods},
		"wrong value":         {launcher, map[string]string{"imds.kubevirt.io/enabled": "yes"}, pods},
		"declines":            {launcher, map[string]string{"imds.kubevirt.io/enabled": "false"}, ""},
		"never asked":         {launcher, manyAnnotations(), ""},
		"no annotations":      {launcher, nil, ""},
		"not a VM's":          {nil, map[string]string{"imds.kubevirt.io/enabled": "true"}, ""},
		"hotplug's of a VM's": {map[string]string{"kubevirt.io": "hotplug-disk"}, map[string]string{"imds.kubevirt.io/enabled": "true"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{
				TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
				ObjectMeta: metav1.ObjectMeta{Name: "virt-launcher-web-x7k2p", Labels: test.labels, Annotations: test.annotations},
			}
			server.expect(t, request{object: pod}, test.want)
			server.expect(t, request{object: pod, old: pod}, "")
		})
	}
}

// expect fails unless the request is sent to the webhook that is wanted and to no
// other; to none where that is empty.
func (s *apiServer) expect(t *testing.T, r request, want string) {
	t.Helper()
	var wanted []string
	if want != "" {
		wanted = []string{want}
	}
	if got := s.sent(t, r); !slices.Equal(got, wanted) {
		t.Errorf("sent to %v, want %v", got, wanted)
	}
}
