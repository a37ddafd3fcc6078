package main

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/google/go-cmp/cmp"

	"github.com/example/kubevirt-imds/tools/generate/internal/manifest"
)

// kptfile is the part of kpt.dev/v1 that a package's author writes.
type kptfile struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata"`
	Info       struct {
		Site        string   `json:"site"`
		Description string   `json:"description"`
		Keywords    []string `json:"keywords"`
	} `json:"info"`
	Pipeline struct {
		Mutators []struct {
			Image      string `json:"image"`
			ConfigPath string `json:"configPath"`
		} `json:"mutators"`
	} `json:"pipeline"`
}

func readStrictly(t *testing.T, name string, value any) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(repository, "kustomize", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(content, value); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func TestKptfileIsValid(t *testing.T) {
	var file kptfile
	readStrictly(t, "Kptfile", &file)
	if file.APIVersion != "kpt.dev/v1" || file.Kind != "Kptfile" || file.Metadata["name"] != "kubevirt-imds" || file.Info.Description == "" {
		t.Errorf("%+v", file)
	}
	for _, mutator := range file.Pipeline.Mutators {
		if _, err := os.Stat(filepath.Join(repository, "kustomize", mutator.ConfigPath)); err != nil {
			t.Error(err)
		}
		if !regexp.MustCompile(`:v\d`).MatchString(mutator.Image) {
			t.Errorf("function %s has no version", mutator.Image)
		}
	}
}

// setter finds a line with a value and the pattern that apply-setters makes it of.
var setter = regexp.MustCompile(`(?m)^\s*(?:- )?(?:[\w./-]+: )?(\S+) # kpt-set: (\S+)$`)

// TestSettersAgreeWithTheFiles: setting the defaults must change nothing, every
// setter must set something, and no comment may name one that is not there.
func TestSettersAgreeWithTheFiles(t *testing.T) {
	var setters corev1.ConfigMap
	readStrictly(t, "setters.yaml", &setters)
	var replacements []string
	used := map[string]int{}
	for name, value := range setters.Data {
		replacements = append(replacements, "${"+name+"}", value)
		used[name] = 0
	}
	err := fs.WalkDir(os.DirFS(filepath.Join(repository, "kustomize")), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(filepath.Join(repository, "kustomize", name))
		if err != nil {
			return err
		}
		matches := setter.FindAllSubmatch(content, -1)
		if comments := bytes.Count(content, []byte("kpt-set: ")); len(matches) != comments {
			t.Errorf("%s: %d of %d kpt-set comments are behind a value", name, len(matches), comments)
		}
		for _, match := range matches {
			value, pattern := string(match[1]), string(match[2])
			if set := strings.NewReplacer(replacements...).Replace(pattern); set != value {
				t.Errorf("%s: %s would become %s", name, value, set)
			}
			for setter := range used {
				if strings.Contains(pattern, "${"+setter+"}") {
					used[setter]++
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, count := range used {
		if count == 0 {
			t.Errorf("setter %s sets nothing", name)
		}
	}
	if setters.Data["namespace"] != manifest.Defaults.Namespace || setters.Data["failure-policy"] != manifest.Defaults.FailurePolicy {
		t.Errorf("the setters %v are not the generator's defaults %+v", setters.Data, manifest.Defaults)
	}
}

// TestNamespaceIsSetEverywhere: a namespace that no setter reaches would stay
// behind.
func TestNamespaceIsSetEverywhere(t *testing.T) {
	namespace := regexp.MustCompile(`(?m)^[^#\n]*[ ./]?\bkubevirt-imds(?:-node)?\b(?:\.svc|/|$)[^\n]*$`)
	for _, folder := range []string{"base", "components", "sidecar"} {
		err := fs.WalkDir(os.DirFS(filepath.Join(repository, "kustomize")), folder, func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			content, err := os.ReadFile(filepath.Join(repository, "kustomize", name))
			if err != nil {
				return err
			}
			for _, line := range namespace.FindAllString(string(content), -1) {
				if !strings.Contains(line, "# kpt-set: ") && !strings.Contains(line, "part-of:") {
					t.Errorf("%s: %s", name, line)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestSettersReachTheAlerts: their expressions have no comment, but get the namespace that
// kpt has set beside them.
func TestSettersReachTheAlerts(t *testing.T) {
	tree := loadTree(t)
	for name, content := range contents(t, filepath.Join(repository, "kustomize")) {
		set := setter.ReplaceAllStringFunc(content, func(line string) string {
			match := setter.FindStringSubmatch(line)
			return strings.Replace(line, ": "+match[1], ": "+strings.Replace(match[2], "${namespace}", "infra", 1), 1)
		})
		if err := tree.Write("kustomize/"+name, []byte(set)); err != nil {
			t.Fatal(err)
		}
	}
	content, err := tree.BuildWith("kustomize/base", "cert-manager", "metrics", "node-agent", "node-agent-metrics")
	if err != nil {
		t.Fatal(err)
	}
	r := decode(t, content)
	for rule, namespace := range map[string]string{"imds": "infra", "imds-node-agent": "infra-node"} {
		for _, expression := range expressionsIn(r.custom["PrometheusRule/"+rule]) {
			if !strings.Contains(expression, `{namespace="`+namespace+`"`) {
				t.Errorf("%s: %s is not about the namespace %s", rule, expression, namespace)
			}
		}
	}
}

// runIn runs kpt or git in a folder; it must succeed.
func runIn(t *testing.T, folder, program string, args ...string) string {
	t.Helper()
	command := exec.Command(program, args...)
	command.Dir = folder
	command.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=test", "GIT_AUTHOR_EMAIL=test@example.com", "GIT_COMMITTER_NAME=test", "GIT_COMMITTER_EMAIL=test@example.com",
		"KPT_CACHE_DIR="+filepath.Join(binaries.folder, "kpt-cache"))
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return string(out)
}

// fetchPackage publishes the package in a git repository and has kpt fetch it. The
// function image is replaced by the generator itself: no test pulls images.
func fetchPackage(t *testing.T) (kpt, folder string) {
	t.Helper()
	kpt = onPath(t, "kpt", "install kpt (kpt.dev) to fetch and render the package")
	git := onPath(t, "git", "apt-get install git")
	upstream := t.TempDir()
	if err := os.CopyFS(filepath.Join(upstream, "kustomize"), os.DirFS(filepath.Join(repository, "kustomize"))); err != nil {
		t.Fatal(err)
	}
	runIn(t, upstream, git, "init", "--quiet", "--initial-branch=main")
	runIn(t, upstream, git, "add", "--all")
	runIn(t, upstream, git, "commit", "--quiet", "--message=package")
	workspace := t.TempDir()
	runIn(t, workspace, kpt, "pkg", "get", "file://"+upstream+"/.git/kustomize@main", "imds")
	folder = filepath.Join(workspace, "imds")
	replaceIn(t, filepath.Join(folder, "Kptfile"), "image: ghcr.io/kptdev/krm-functions-catalog/apply-setters:v0.2",
		"exec: "+binary(t, "tools/generate")+" krm-function")
	return kpt, folder
}

// contents are the files of a folder, by name.
func contents(t *testing.T, folder string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := fs.WalkDir(os.DirFS(folder), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(filepath.Join(folder, name))
		files[name] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestKptFetchesWhatKubectlCanApply(t *testing.T) {
	_, folder := fetchPackage(t)
	tree := loadTree(t)
	for name, content := range contents(t, folder) {
		if err := tree.Write("../imds/"+name, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	got, want := build(t, tree, "../imds"), build(t, tree, "overlays/cert-manager")
	if diff := cmp.Diff(want.patches.Data, got.patches.Data); diff != "" {
		t.Errorf("kpt changed the patches (-committed +fetched):\n%s", diff)
	}
	if diff := cmp.Diff(want.deployment.Spec, got.deployment.Spec); diff != "" {
		t.Errorf("kpt changed the Deployment (-committed +fetched):\n%s", diff)
	}
	if diff := cmp.Diff(want.configuration.Webhooks, got.configuration.Webhooks); diff != "" {
		t.Errorf("kpt changed the webhooks (-committed +fetched):\n%s", diff)
	}
}

func TestKptRenderWithTheFunctionChangesNothing(t *testing.T) {
	kpt, folder := fetchPackage(t)
	before := contents(t, folder)
	runIn(t, folder, kpt, "fn", "render", "--allow-exec")
	if diff := cmp.Diff(before, contents(t, folder)); diff != "" {
		t.Errorf("(-fetched +rendered):\n%s", diff)
	}
}

func TestKptRenderPutsTheSettersIn(t *testing.T) {
	kpt, folder := fetchPackage(t)
	replaceIn(t, filepath.Join(folder, "setters.yaml"), "failure-policy: Fail", "failure-policy: Ignore")
	replaceIn(t, filepath.Join(folder, "setters.yaml"), "namespace: kubevirt-imds", "namespace: infra")
	before := contents(t, folder)
	runIn(t, folder, kpt, "fn", "render", "--allow-exec")
	after := contents(t, folder)
	const name = "base/mutatingwebhookconfiguration.yaml"
	want := strings.NewReplacer("failurePolicy: Fail #", "failurePolicy: Ignore #", "namespace: kubevirt-imds #", "namespace: infra #").Replace(before[name])
	if diff := cmp.Diff(want, after[name]); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
	before[name], after[name] = "", ""
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("other files (-before +after):\n%s", diff)
	}
}

func TestKptEvalRestoresGeneratedFiles(t *testing.T) {
	kpt, folder := fetchPackage(t)
	want := contents(t, folder)
	replaceIn(t, filepath.Join(folder, "base/mutatingwebhookconfiguration.yaml"), "reinvocationPolicy: IfNeeded", "reinvocationPolicy: Never")
	replaceIn(t, filepath.Join(folder, "sidecar/20-imds-server.yaml"), "drop: [ALL]", "drop: []")
	replaceIn(t, filepath.Join(folder, "components/regular-containers/30-regular-containers.yaml"), "drop: [ALL]", "drop: []")
	// As a part of another package too.
	runIn(t, filepath.Dir(folder), kpt, "fn", "eval", ".", "--exec", binary(t, "tools/generate")+" krm-function")
	if diff := cmp.Diff(want, contents(t, folder)); diff != "" {
		t.Errorf("(-fetched +restored):\n%s", diff)
	}
}

func TestKptLeavesPatchesAndExamplesAlone(t *testing.T) {
	_, folder := fetchPackage(t)
	for name, content := range contents(t, folder) {
		patch := filepath.Dir(name) == "sidecar" || strings.HasPrefix(filepath.Base(name), "30-") || strings.HasPrefix(name, "examples/")
		if patch && !strings.HasSuffix(name, "kustomization.yaml") && strings.Contains(content, "kpt.dev") {
			t.Errorf("%s has kpt's marks in it, which would end on every VM's pod", name)
		}
	}
	if _, err := os.Stat(filepath.Join(folder, "examples")); err != nil {
		t.Error(err)
	}
}
