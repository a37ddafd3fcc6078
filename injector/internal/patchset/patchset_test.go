package patchset

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"sigs.k8s.io/yaml"

	"github.com/example/kubevirt-imds/injector/internal/jsontree"
)

const image = "registry.example/server:v1"

// whole is a patch that brings everything that a set has to bring.
const whole = `apiVersion: v1
kind: Pod
metadata:
  name: any
spec:
  initContainers:
  - name: imds-init
    restartPolicy: Always
  - name: imds-server
    restartPolicy: Always
  volumes:
  - name: imds-token
    projected:
      sources:
      - serviceAccountToken:
          path: token
`

// sidecars are the two containers alone.
const sidecars = "  initContainers:\n  - name: imds-init\n    restartPolicy: Always\n  - name: imds-server\n    restartPolicy: Always\n"

// folder makes a folder of patch files from names and contents in turn.
func folder(t *testing.T, namesAndContents ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(namesAndContents); i += 2 {
		write(t, filepath.Join(dir, namesAndContents[i]), namesAndContents[i+1])
	}
	return dir
}

// write moves a new file over path.
func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string) *Set {
	t.Helper()
	set, err := Open(dir, image)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// patch puts a spec into the frame of a patch.
func patch(spec string) string {
	return "apiVersion: v1\nkind: Pod\nspec:\n" + spec
}

func value(t *testing.T, text string) jsontree.Value {
	t.Helper()
	data, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := jsontree.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return decoded
}

func object(t *testing.T, text string) jsontree.Object {
	t.Helper()
	return value(t, text).Tree().(jsontree.Object)
}

// applied returns the pod with the patches of a folder applied. Applied to the
// pod's outline, to which they may only be added, they give the same difference.
func applied(t *testing.T, pod, dir string) jsontree.Object {
	t.Helper()
	set := open(t, dir)
	before := object(t, pod)
	if before["metadata"] == nil {
		before["metadata"] = jsontree.Object{}
		pod = encoded(t, before)
	}
	patch, after := changed(t, set, before)
	if again, _ := changed(t, set, before); again != patch {
		t.Errorf("applied a second time the set changes the pod by\n%s\nand not by\n%s", again, patch)
	}
	if got, _ := changed(t, set, outlineOf(t, set, pod)); got != patch {
		t.Errorf("by its outline the pod is changed by\n%s\nand not by\n%s", got, patch)
	}
	return after
}

// patchedBy returns a pod after the difference that the patches of a folder make.
func patchedBy(t *testing.T, dir, pod string) jsontree.Object {
	t.Helper()
	set, before := open(t, dir), value(t, pod)
	text, _ := changed(t, set, outlineOf(t, set, pod))
	patch, err := jsonpatch.DecodePatch([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	patched, err := patch.Apply(before)
	if err != nil {
		t.Fatal(err)
	}
	return object(t, string(patched))
}

func outlineOf(t *testing.T, set *Set, pod string) jsontree.Object {
	t.Helper()
	outline, err := set.Outline(value(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	return outline
}

// changed returns a pod with a set applied, and how it differs.
func changed(t *testing.T, set *Set, pod jsontree.Object) (patch string, after jsontree.Object) {
	t.Helper()
	after, err := set.Apply(jsontree.Clone(pod))
	if err != nil {
		t.Fatal(err)
	}
	return string(jsontree.Diff(pod, after)), after
}

func encoded(t *testing.T, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// names returns the values of a key in a list at path.
func values(t *testing.T, pod jsontree.Object, key string, path ...string) string {
	t.Helper()
	var found []string
	for _, element := range jsontree.Lookup[[]any](pod, path...) {
		found = append(found, jsontree.Lookup[string](element.(jsontree.Object), key))
	}
	return strings.Join(found, " ")
}

func TestWrongFilesNameFileFieldAndReason(t *testing.T) {
	for name, test := range map[string]struct {
		content string
		want    string
	}{
		"empty":                {"", "the file is empty"},
		"comments only":        {"# nothing\n", "the file is empty"},
		"syntax":               {"apiVersion: v1\nkind: Pod\nspec:\n  initContainers: [\n", "line 4: did not find expected node content"},
		"tab":                  {"apiVersion: v1\nkind: Pod\nspec:\n\tvolumes: []\n", "line 4: found character that cannot start any token"},
		"two documents":        {whole + "---\n" + whole, "more than one document"},
		"duplicate key":        {patch("  hostname: a\n  hostname: b\n"), `line 5: mapping key "hostname" already defined at line 4`},
		"unknown field":        {patch("  initContainers:\n  - name: a\n    comand: [x]\n"), `20-wrong.yaml: unknown field "spec.initContainers[0].comand"`},
		"field in wrong case":  {patch("  initcontainers: []\n"), `20-wrong.yaml: unknown field "spec.initcontainers"`},
		"two wrong fields":     {patch("  foo: 1\n  bar: 2\n"), `20-wrong.yaml: unknown field "spec.bar", unknown field "spec.foo"`},
		"unknown directive":    {patch("  $path: replace\n"), `20-wrong.yaml: unknown field "spec.$path"`},
		"order of no list":     {patch("  $setElementOrder/initContainer: []\n"), `20-wrong.yaml: unable to find api field in struct PodSpec for the json field "initContainer"`},
		"number for string":    {patch("  securityContext:\n    sysctls:\n    - name: a\n      value: 80\n"), "20-wrong.yaml: field spec.securityContext.sysctls.value: want string, not number"},
		"string for number":    {patch("  terminationGracePeriodSeconds: \"30\"\n"), "20-wrong.yaml: field spec.terminationGracePeriodSeconds: want int64, not string"},
		"string for boolean":   {patch("  hostNetwork: \"no\"\n"), "20-wrong.yaml: field spec.hostNetwork: want bool, not string"},
		"object for list":      {patch("  volumes:\n    name: a\n"), "20-wrong.yaml: field spec.volumes: want []v1.Volume, not object"},
		"list for object":      {patch("  securityContext: []\n"), "20-wrong.yaml: field spec.securityContext: want v1.PodSecurityContext, not array"},
		"list for map":         {"apiVersion: v1\nkind: Pod\nmetadata:\n  labels: [a]\n", "20-wrong.yaml: field metadata.labels: want map[string]string, not array"},
		"number for label":     {"apiVersion: v1\nkind: Pod\nmetadata:\n  labels:\n    a: 1\n", "20-wrong.yaml: field metadata.labels: want string, not number"},
		"number for label key": {"apiVersion: v1\nkind: Pod\nmetadata:\n  labels:\n    1: a\n", "20-wrong.yaml: line 5: key 1: want a string"},
		"merge key":            {patch("  <<: {hostname: a}\n"), "20-wrong.yaml: line 4: key <<: want a string"},
		"no containers":        {patch("  containers:\n"), "field spec.containers is empty"},
		"no containers left":   {patch("  containers:\n  - {name: compute, $patch: delete}\n"), "the patches remove the container compute"},
		"empty list element":   {patch("  volumes:\n  -\n"), "20-wrong.yaml: line 5: an element of the list is empty"},
		"wrong quantity":       {patch("  containers:\n  - name: a\n    resources:\n      limits: {cpu: much}\n"), "20-wrong.yaml: field spec.containers[0].resources.limits.cpu: much is not a quantity such as 100m"},
		"quantity of nothing":  {patch("  containers:\n  - name: a\n    resources:\n      limits: {'': much}\n"), "20-wrong.yaml: field spec.containers[0].resources.limits.: much is not a quantity"},
		"wrong unit":           {patch("  containers:\n  - name: a\n    resources:\n      requests: {memory: 64MB}\n"), "field spec.containers[0].resources.requests.memory: 64MB is not a quantity"},
		"infinite":             {patch("  containers:\n  - name: a\n    securityContext: {runAsUser: .inf}\n"), "20-wrong.yaml: it cannot be converted to JSON"},
		"empty field":          {patch("  securityContext:\n    # sysctls: []\n"), "20-wrong.yaml: field spec.securityContext is empty, which would remove the pod's own"},
		"sysctl without value": {patch("  securityContext: {sysctls: [{name: a}]}\n"), "20-wrong.yaml: spec.securityContext.sysctls[0]: want name and value"},
		"sysctl that goes":     {patch("  securityContext: {sysctls: [{name: a, $patch: delete}]}\n"), "20-wrong.yaml: spec.securityContext.sysctls[0]: want name and value, and nothing else"},
		"a list":               {"- a\n", "20-wrong.yaml: not a Pod"},
		"another kind":         {"apiVersion: apps/v1\nkind: Deployment\n", "not a Pod: begin with apiVersion: v1 and kind: Pod"},
		"no kind":              {"apiVersion: v1\n", "not a Pod"},
		"status":               {"apiVersion: v1\nkind: Pod\nstatus: {phase: Running}\n", "field status cannot be patched"},
		"namespace":            {"apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b}\n", "field metadata.namespace cannot be patched"},
		"element without key":  {patch("  initContainers:\n  - command: [a]\n"), "20-wrong.yaml: map: map[command:[a]] does not contain declared merge key: name"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t, "10-whole.yaml", whole, "20-wrong.yaml", test.content)
			_, err := Open(dir, image)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
			if err != nil && !strings.Contains(err.Error(), dir) {
				t.Errorf("%v does not name the place", err)
			}
		})
	}
}

func TestSetsThatLackSomething(t *testing.T) {
	for want, dir := range map[string]string{
		"no patch files in":                         folder(t, "README.md", "text", ".hidden.yaml", whole, "kustomization.yaml", whole),
		"no patch brings the container imds-server": folder(t, "a.yaml", strings.Replace(whole, "  - name: imds-server\n    restartPolicy: Always\n", "", 1)),
		"nobody wires the pod":                      folder(t, "a.yaml", strings.Replace(whole, "  - name: imds-init\n    restartPolicy: Always\n", "", 1)),
		"no patch brings the volume imds-token":     folder(t, "a.yaml", patch(sidecars)),
		"the container imds-servr has a name that begins with imds-: want imds-init or imds-server":           folder(t, "a.yaml", whole, "b.yaml", patch("  initContainers:\n  - name: imds-servr\n    env: []\n")),
		"the VM would not start before the init container imds-init ends":                                     folder(t, "a.yaml", whole, "b.yaml", patch("  initContainers:\n  - name: imds-init\n    restartPolicy: null\n")),
		"the container imds-server requests 64Mi of memory, more than its limit of 32Mi":                      folder(t, "a.yaml", whole, "b.yaml", patch("  initContainers:\n  - name: imds-server\n    resources: {requests: {memory: 64Mi}, limits: {memory: 32Mi}}\n")),
		"the container imds-server has the variable A with both value and valueFrom: set one of them to null": folder(t, "a.yaml", whole, "b.yaml", patch("  initContainers:\n  - name: imds-server\n    env: [{name: A, value: b, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]\n")),
		"the container imds-server has a livenessProbe with 2 of exec, httpGet, tcpSocket and grpc":           folder(t, "a.yaml", whole, "b.yaml", patch("  initContainers:\n  - name: imds-server\n    livenessProbe: {exec: {command: [a]}, tcpSocket: {port: 80}}\n")),
		"the container imds-server has a readinessProbe with 0 of":                                            folder(t, "a.yaml", whole, "b.yaml", patch("  initContainers:\n  - name: imds-server\n    readinessProbe: {periodSeconds: 5}\n")),
		"the volume imds-token asks for a token of 300 seconds: want 600 or more":                             folder(t, "a.yaml", whole, "b.yaml", patch("  volumes:\n  - name: imds-token\n    projected: {sources: [{serviceAccountToken: {path: token, expirationSeconds: 300}}]}\n")),
		`metadata.labels: Invalid value: ""`:                                                                  folder(t, "a.yaml", whole, "b.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {labels: {'': a}}\n"),
		`metadata.annotations: annotation imds.kubevirt.io/require-header: "yes" is not allowed`:              folder(t, "a.yaml", whole, "b.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {annotations: {imds.kubevirt.io/require-header: 'yes'}}\n"),
		`metadata.annotations: annotation "imds.kubevirt.io/hop-limits" is not known`:                         folder(t, "a.yaml", whole, "b.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {annotations: {imds.kubevirt.io/hop-limits: '1'}}\n"),
		"the patches set hostNetwork, hostPID or shareProcessNamespace":                                       folder(t, "a.yaml", whole, "b.yaml", patch("  shareProcessNamespace: true\n")),
		"the patches set hostNetwork":                                                                         folder(t, "a.yaml", whole, "b.yaml", patch("  hostNetwork: true\n")),
		"volume imds-token has no projected serviceAccountToken":                                              folder(t, "a.yaml", patch(sidecars+"  volumes:\n  - name: imds-token\n    emptyDir: {}\n")),
	} {
		if _, err := Open(dir, image); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// agents takes imds-init out of whole, and has the socket at a path, the volume and its
// mount.
func agents(socket, volume, mount string) string {
	return patch("  initContainers:\n  - {name: imds-init, $patch: delete}\n  - name: imds-server\n    env: [{name: IMDS_NODE_SOCKET, value: " + socket +
		"}]\n    volumeMounts: [" + mount + "]\n  volumes: [" + volume + "]\n")
}

func TestWhoWires(t *testing.T) {
	const socket, volume, mount = "/run/imds-node/imds.sock", "{name: imds-node, emptyDir: {sizeLimit: 1Mi}}", "{name: imds-node, mountPath: /run/imds-node}"
	if by := open(t, folder(t, "a.yaml", whole)).WiredBy; by != "sidecar" {
		t.Errorf("with imds-init: %q", by)
	}
	if by := open(t, folder(t, "a.yaml", whole, "b.yaml", agents(socket, volume, mount))).WiredBy; by != "node-agent" {
		t.Errorf("with the socket: %q", by)
	}
	withoutInit := patch("  initContainers: [{name: imds-init, $patch: delete}]\n")
	for name, test := range map[string]struct{ content, want string }{
		"nobody":              {withoutInit, "nobody wires the pod: add the container imds-init to spec.initContainers, or give imds-server the environment IMDS_NODE_SOCKET"},
		"no path":             {agents("''", volume, mount), "nobody wires the pod"},
		"both":                {strings.Replace(agents(socket, volume, mount), "  - {name: imds-init, $patch: delete}\n", "", 1), "the patches bring both the container imds-init and IMDS_NODE_SOCKET"},
		"no volume":           {agents(socket, "", mount), "want the volume imds-node, an emptyDir on disk"},
		"a volume in memory":  {agents(socket, "{name: imds-node, emptyDir: {medium: Memory}}", mount), "an emptyDir on disk"},
		"another volume":      {agents(socket, "{name: imds-node, hostPath: {path: /run}}", mount), "an emptyDir on disk"},
		"no mount":            {agents(socket, volume, ""), "the node agent cannot find the socket " + socket + " of imds-server"},
		"a mount of another":  {agents(socket, volume, "{name: other, mountPath: /run/imds-node}"), "the node agent cannot find the socket"},
		"another folder":      {agents("/run/imds.sock", volume, mount), "the node agent cannot find the socket /run/imds.sock"},
		"another name in it":  {agents("/run/imds-node/a.sock", volume, mount), "and the socket imds.sock in its mount"},
		"deeper in the mount": {agents("/run/imds-node/a/imds.sock", volume, mount), "the node agent cannot find the socket"},
	} {
		if _, err := Open(folder(t, "a.yaml", whole, "b.yaml", test.content), image); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", name, err, test.want)
		}
	}
}

// A container that one patch brings and a later one takes away is in no pod, and one
// that the pod has is taken away.
func TestWhatAPatchBringsALaterOneTakesAway(t *testing.T) {
	dir := folder(t, "a.yaml", whole, "b.yaml", agents("/run/imds-node/imds.sock", "{name: imds-node, emptyDir: {}}", "{name: imds-node, mountPath: /run/imds-node}"))
	for pod, want := range map[string]string{
		"spec: {containers: [{name: compute}]}":                                                                   "imds-server",
		"spec: {containers: [{name: compute}], initContainers: [{name: own}]}":                                    "own imds-server",
		"spec: {containers: [{name: compute}], initContainers: [{name: own}, {name: imds-init}]}":                 "own imds-server",
		"spec: {containers: [{name: compute}], initContainers: [{name: imds-server, image: other}, {name: own}]}": "imds-server own",
	} {
		if got := values(t, patchedBy(t, dir, "{metadata: {}, "+pod+"}"), "name", "spec", "initContainers"); got != want {
			t.Errorf("%s: got %s, want %s", pod, got, want)
		}
	}
}

func TestFilesAreAppliedInNameOrder(t *testing.T) {
	dir := folder(t,
		"b.yml", patch("  priorityClassName: second\n"),
		"a.yaml", whole,
		"c.json", "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\",\n\t\"spec\": {\"priorityClassName\": \"third\"}\n}\n",
		".d.yaml", patch("  priorityClassName: hidden\n"),
		"e.txt", "not a patch")
	if err := os.Symlink(dir, filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	pod := applied(t, "spec: {containers: [{name: compute}]}", dir)
	if got := jsontree.Lookup[string](pod, "spec", "priorityClassName"); got != "third" {
		t.Errorf("priorityClassName %q", got)
	}
}

func TestThePodsElementsComeFirstAndKeepTheirOrder(t *testing.T) {
	dir := folder(t, "a.yaml", whole, "b.yaml", patch(`  initContainers:
  - name: zz-more
  - name: imds-server
    env:
    - name: ADDED
      value: x
  - name: existing-b
    env:
    - name: NEW
      value: x
    - name: B
      value: changed
  - name: aa-more
  tolerations:
  - key: atomic
`), "c.yaml", patch(`  initContainers:
  - name: imds-server
    env:
    - name: AFTERWARDS
      value: x
`))
	pod := applied(t, `
spec:
  initContainers:
  - name: existing-c
  - name: existing-b
    env:
    - {name: C, value: "1"}
    - {name: B, value: "2"}
    - {name: A, value: "3"}
    ports:
    - {containerPort: 53, protocol: UDP}
    - {containerPort: 53, protocol: TCP}
  - name: existing-a
  volumes:
  - name: z
  - name: a
  tolerations:
  - key: own
`, dir)
	for _, test := range []struct{ got, want string }{
		{values(t, pod, "name", "spec", "initContainers"), "existing-c existing-b existing-a imds-init imds-server zz-more aa-more"},
		{values(t, pod, "name", "spec", "volumes"), "z a imds-token"},
		{values(t, pod, "key", "spec", "tolerations"), "atomic"},
	} {
		if test.got != test.want {
			t.Errorf("got %s, want %s", test.got, test.want)
		}
	}
	containers := jsontree.Lookup[[]any](pod, "spec", "initContainers")
	if got := values(t, containers[1].(jsontree.Object), "name", "env"); got != "C B A NEW" {
		t.Errorf("env of existing-b: %s", got)
	}
	if got := values(t, containers[1].(jsontree.Object), "protocol", "ports"); got != "UDP TCP" {
		t.Errorf("ports of existing-b: %s", got)
	}
	if got := values(t, containers[4].(jsontree.Object), "name", "env"); got != "ADDED AFTERWARDS" {
		t.Errorf("env of imds-server: %s", got)
	}
}

func TestAPatchMayStateTheOrderItself(t *testing.T) {
	dir := folder(t, "a.yaml", whole, "b.yaml", patch(`  $setElementOrder/initContainers:
  - name: imds-server
  - name: existing
  - name: imds-init
  initContainers:
  - name: imds-server
`))
	pod := patchedBy(t, dir, "{metadata: {}, spec: {initContainers: [{name: existing, image: own}]}}")
	containers := jsontree.Lookup[[]any](pod, "spec", "initContainers")
	if got, want := encoded(t, containers), `[{"image":"`+image+`","name":"imds-server","restartPolicy":"Always"},{"image":"own","name":"existing"},{"image":"`+image+`","name":"imds-init","restartPolicy":"Always"}]`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Such a directive is for the whole list, wherever in it it stands.
func TestDirectiveReplacesAList(t *testing.T) {
	dir := folder(t, "a.yaml", whole, "b.yaml", patch(`  initContainers:
  - name: any
    $patch: replace
  - name: imds-init
    restartPolicy: Always
  - name: imds-server
    restartPolicy: Always
`))
	pod := patchedBy(t, dir, "{metadata: {}, spec: {initContainers: [{name: existing}]}}")
	if got := values(t, pod, "name", "spec", "initContainers"); got != "imds-init imds-server" {
		t.Errorf("got %s", got)
	}
}

// The API server refuses the name, not the webhook's start.
func TestDirectivesDelete(t *testing.T) {
	dir := folder(t, "a.yaml", whole, "b.yaml", patch(`  nodeSelector:
    gone: null
  containers:
  - name: unwanted
    $patch: delete
  affinity:
    $patch: replace
    podAffinity: {}
`))
	pod := applied(t, `
spec:
  nodeSelector: {gone: "1", kept: "2"}
  affinity: {nodeAffinity: {}}
  containers: [{name: compute}, {name: unwanted}, {name: other}]
`, dir)
	if got := values(t, pod, "name", "spec", "containers"); got != "compute other" {
		t.Errorf("containers: %s", got)
	}
	if got, _ := json.Marshal(jsontree.Lookup[jsontree.Object](pod, "spec", "nodeSelector")); string(got) != `{"kept":"2"}` {
		t.Errorf("nodeSelector: %s", got)
	}
	if got, _ := json.Marshal(jsontree.Lookup[jsontree.Object](pod, "spec", "affinity")); string(got) != `{"podAffinity":{}}` {
		t.Errorf("affinity: %s", got)
	}
}

// In a pod such a directive would be a field that nobody knows.
func TestDirectivesOfNewElementsDoNotStay(t *testing.T) {
	dir := folder(t, "a.yaml", whole, "b.yaml", patch("  volumes:\n  - name: cache\n    $retainKeys: [name, emptyDir]\n    emptyDir: {}\n"))
	for _, pod := range []string{
		"{metadata: {}, spec: {containers: [{name: compute}]}}",
		"{metadata: {}, spec: {containers: [{name: compute}], volumes: [{name: cache, hostPath: {path: /}}]}}",
	} {
		volumes := jsontree.Lookup[[]any](patchedBy(t, dir, pod), "spec", "volumes")
		if got := encoded(t, jsontree.Named(volumes, "cache")); got != `{"emptyDir":{},"name":"cache"}` {
			t.Errorf("%s: got %s", pod, got)
		}
	}
}

// A key whose value somebody commented out.
func TestEmptyMetadataRemovesNothing(t *testing.T) {
	dir := folder(t, "a.yaml", whole,
		"b.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\nspec:\n",
		"c.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  labels:\n  annotations:\n")
	pod := applied(t, `{metadata: {labels: {a: b}, annotations: {c: d}}, spec: {containers: [{name: compute}]}}`, dir)
	if got, _ := json.Marshal(pod["metadata"]); string(got) != `{"annotations":{"c":"d"},"labels":{"a":"b"}}` {
		t.Errorf("metadata: %s", got)
	}
	if got := values(t, pod, "name", "spec", "containers"); got != "compute" {
		t.Errorf("containers: %s", got)
	}
}

func TestOnlyNewContainersGetTheImage(t *testing.T) {
	dir := folder(t, "a.yaml", whole, "b.yaml", patch(`  containers:
  - name: compute
    env:
    - name: A
      value: b
  - name: helper
    image: registry.example/helper:v2
  - name: bare
`))
	pod := applied(t, "spec: {containers: [{name: compute, image: virt-launcher}, {name: own}]}", dir)
	if got, want := values(t, pod, "image", "spec", "containers"), "virt-launcher  registry.example/helper:v2 "+image; got != want {
		t.Errorf("containers have %s, want %s", got, want)
	}
	if got, want := values(t, pod, "image", "spec", "initContainers"), image+" "+image; got != want {
		t.Errorf("init containers have %s, want %s", got, want)
	}
}

func TestSysctlsOfSeveralFilesAreMerged(t *testing.T) {
	sysctls := func(pairs ...string) string {
		text := "  securityContext:\n    sysctls:\n"
		for i := 0; i < len(pairs); i += 2 {
			text += "    - {name: " + pairs[i] + ", value: \"" + pairs[i+1] + "\"}\n"
		}
		return patch(text)
	}
	dir := folder(t, "a.yaml", whole, "b.yaml", sysctls("one", "1", "two", "2"), "c.yaml", sysctls("two", "22", "three", "3"))
	pod := applied(t, `spec: {securityContext: {fsGroup: 107, sysctls: [{name: own, value: "0"}, {name: three, value: "33"}]}}`, dir)
	if got := values(t, pod, "name", "spec", "securityContext", "sysctls"); got != "own three one two" {
		t.Errorf("names: %s", got)
	}
	if got := values(t, pod, "value", "spec", "securityContext", "sysctls"); got != "0 3 1 22" {
		t.Errorf("values: %s", got)
	}
	if jsontree.Lookup[any](pod, "spec", "securityContext", "fsGroup") != json.Number("107") {
		t.Error("the rest of the security context is gone")
	}
}

func TestPodsOfUnexpectedShapeAreErrors(t *testing.T) {
	set := open(t, folder(t, "a.yaml", whole, "b.yaml", patch("  securityContext:\n    sysctls:\n    - name: a\n      value: b\n")))
	for _, pod := range []string{
		`{"spec":"x"}`,
		`{"spec":{"initContainers":"x"}}`,
		`{"spec":{"initContainers":["x"]}}`,
		`{"spec":{"containers":[{"image":"x"}]}}`,
		`{"spec":{"containers":[{"name":{}}]}}`,
		`{"spec":{"volumes":[null]}}`,
		`{"spec":{"volumes":[[]]}}`,
		`{"spec":{"securityContext":[]}}`,
		`{"spec":{"securityContext":{"sysctls":{}}}}`,
	} {
		if outline, err := set.Outline(value(t, pod)); err == nil {
			if after, err := set.Apply(outline); err == nil {
				t.Errorf("%s became %s", pod, encoded(t, after))
			}
		}
	}
}

// The kubelet shows a ConfigMap as links by way of ..data.
func TestConfigMapVolume(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "..2026_1"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "..2026_1", "a.yaml"), whole)
	for link, to := range map[string]string{"..data": "..2026_1", "a.yaml": "..data/a.yaml"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if set := open(t, dir); len(set.Files) != 1 {
		t.Errorf("%d files", len(set.Files))
	}
}

// Only a field that is there can be taken away. The API server reads a quantity
// that is null as 0.
func TestNullOfAFieldThatIsNotThere(t *testing.T) {
	dir := folder(t, "a.yaml", whole+`  affinity: {nodeAffinity: null, podAffinity: {}}
`, "b.yaml", patch(`  initContainers:
  - name: imds-server
    resources:
      limits: {cpu: null, memory: 32Mi}
  - name: existing
    resources: {limits: {cpu: null}}
  - name: new
    env: null
    resources: {limits: {cpu: null}}
`))
	pod := applied(t, `{spec: {initContainers: [{name: existing, resources: {limits: {cpu: "1", memory: null}}, own: null}]}}`, dir)
	containers := jsontree.Lookup[[]any](pod, "spec", "initContainers")
	if got, want := encoded(t, containers), `[{"name":"existing","own":null,"resources":{"limits":{"memory":null}}},`+
		`{"image":"`+image+`","name":"imds-init","restartPolicy":"Always"},{"image":"`+image+`","name":"imds-server","resources":{"limits":{"memory":"32Mi"}},"restartPolicy":"Always"},`+
		`{"image":"`+image+`","name":"new","resources":{"limits":{}}}]`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := encoded(t, jsontree.Lookup[any](pod, "spec", "affinity")); got != `{"podAffinity":{}}` {
		t.Errorf("affinity: %s", got)
	}
}

func TestOutlineIsBounded(t *testing.T) {
	set := open(t, folder(t, "a.yaml", whole, "b.yaml", patch("  affinity: {podAffinity: {}}\n  containers:\n  - name: compute\n    tty: true\n")))
	many := "[" + strings.Repeat(`{"name":"a"},`, 1000) + `{"name":"a"}]`
	long := strings.Repeat("x", 70_000)
	for pod, want := range map[string]string{
		`{"spec":{"volumes":` + many + `}}`:                                    "spec.volumes has more than 1000 elements",
		`{"spec":{"volumes":[{"name":"` + long + `"}]}}`:                       "spec.volumes[0] has no name",
		`{"spec":{"affinity":{"nodeAffinity":"` + long + `"}}}`:                "more than 65536 bytes",
		`{"spec":{"containers":[{"name":"compute","args":["` + long + `"]}]}}`: "more than 65536 bytes",
	} {
		outline, err := set.Outline(value(t, pod))
		if err == nil {
			_, err = set.Apply(outline)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: got %v, want %s", pod, err, want)
		}
	}
	// What the patches do not name may be as large as it likes.
	outline := outlineOf(t, set, `{"spec":{"containers":[{"name":"own","args":["`+long+`"]}],"future":"`+long+`"}}`)
	if _, err := set.Apply(outline); err != nil {
		t.Error(err)
	}
}

// What YAML takes for a date is the text that was written.
func TestDatesAreText(t *testing.T) {
	dir := folder(t, "a.yaml", whole, "b.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {labels: {day: 2026-11-26}}\n")
	pod := applied(t, "spec: {containers: [{name: compute}]}", dir)
	if got := encoded(t, pod["metadata"]); got != `{"labels":{"day":"2026-11-26"}}` {
		t.Errorf("metadata: %s", got)
	}
}

// Quantities are compared as texts: each has one form.
func TestQuantitiesHaveOneForm(t *testing.T) {
	dir := folder(t, "a.yaml", whole, "b.yaml", patch("  initContainers:\n  - name: imds-server\n    resources: {requests: {cpu: 0.2, memory: 1024Mi}, limits: {cpu: 1, memory: '2147483648'}}\n"))
	pod := applied(t, "spec: {containers: [{name: compute}]}", dir)
	server := jsontree.Named(jsontree.Lookup[[]any](pod, "spec", "initContainers"), ServerContainer)
	if got := encoded(t, server["resources"]); got != `{"limits":{"cpu":"1","memory":"2147483648"},"requests":{"cpu":"200m","memory":"1Gi"}}` {
		t.Errorf("resources: %s", got)
	}
}

func TestFilesThatAreNoPatches(t *testing.T) {
	set := open(t, folder(t, "a.yaml", whole, "b.YAML", "x", "kustomization.yaml", "x", ".hidden", "x"))
	if got := strings.Join(append(set.Files, set.LeftOut...), " "); got != "a.yaml b.YAML" {
		t.Errorf("read, and then left out: %s", got)
	}
}

// Replicas with other files tell other hashes.
func TestHashIsOfNamesAndContents(t *testing.T) {
	hash := func(name, content string) string {
		s, err := Open(folder(t, name, content), image)
		if err != nil {
			t.Fatal(err)
		}
		return s.Hash
	}
	one := hash("10.yaml", whole)
	if one != hash("10.yaml", whole) || one == hash("11.yaml", whole) || one == hash("10.yaml", whole+"# changed\n") || len(one) != 12 {
		t.Errorf("hash %s", one)
	}
}
