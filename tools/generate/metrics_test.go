package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/example/kubevirt-imds/tools/generate/internal/contract"
)

// The series that both programs tell, as their own tests have written them.
var toldBy = map[string]string{"injector/README.md": "injector/testdata/metrics.txt", "netsetup/README.md": "netsetup/testdata/metrics.txt"}

func readFile(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(repository, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

var (
	selector = regexp.MustCompile(`\b(?:imds_\w+|up|kube_\w+)\b(\{[^}]*\})?`)
	matcher  = regexp.MustCompile(`(\w+)(=~|!~|!=|=)"([^"]*)"`)
)

// problemOfExpression is the first selector in an expression of PromQL that no series
// of ours has, or that takes another namespace's too.
func problemOfExpression(expression, namespace string, series []string) string {
	found := selector.FindAllString(expression, -1)
	if len(found) == 0 {
		return "no metric of ours is in it"
	}
	for _, found := range found {
		name, matchers, _ := strings.Cut(found, "{")
		if rest, isOurs := strings.CutPrefix(matchers, `namespace="`+namespace+`"`); !isOurs {
			return fmt.Sprintf("%s does not begin with the namespace %s", found, namespace)
		} else if !slices.ContainsFunc(series, func(one string) bool { return selects(one, name, rest) }) {
			return fmt.Sprintf("no series is selected by %s", found)
		}
	}
	return ""
}

func selects(series, name, matchers string) bool {
	have, labels, _ := strings.Cut(series, "{")
	values := map[string]string{}
	for _, label := range matcher.FindAllStringSubmatch(labels, -1) {
		values[label[1]] = label[3]
	}
	return have == name && !slices.ContainsFunc(matcher.FindAllStringSubmatch(matchers, -1), func(m []string) bool {
		value, found := values[m[1]]
		equal := value == m[3]
		if strings.HasSuffix(m[2], "~") {
			equal = regexp.MustCompile("^(?:" + m[3] + ")$").MatchString(value)
		}
		return !found || equal == strings.HasPrefix(m[2], "!")
	})
}

// expressionsIn are the PromQL in a dashboard or a rule, however deep.
func expressionsIn(value any) (all []string) {
	switch value := value.(type) {
	case map[string]any:
		for name, inner := range value {
			if text, isText := inner.(string); isText && name == "expr" {
				all = append(all, text)
			}
			all = append(all, expressionsIn(inner)...)
		}
	case []any:
		for _, inner := range value {
			all = append(all, expressionsIn(inner)...)
		}
	}
	return all
}

// scraped is an installation with everything for Prometheus; where a namespace is given,
// its webhook is there, as the page says.
func scraped(t *testing.T, namespace string) rendered {
	t.Helper()
	tree := loadTree(t)
	webhook := "resources: [../kubevirt-imds/overlays/cert-manager]\ncomponents: [../kubevirt-imds/kustomize/components/metrics]\n"
	if namespace != "" {
		webhook += "namespace: " + namespace + "\ntransformers: [../kubevirt-imds/kustomize/namespace]\n"
	}
	for folder, kustomization := range map[string]string{
		mine:            webhook,
		mine + "-nodes": "resources: [../my-imds]\ncomponents: [../kubevirt-imds/kustomize/components/node-agent, ../kubevirt-imds/kustomize/components/node-agent-metrics]\n",
	} {
		if err := tree.Write(folder+"/kustomization.yaml", []byte(kustomization)); err != nil {
			t.Fatal(err)
		}
	}
	return build(t, tree, mine+"-nodes")
}

// TestAlertsAndDashboardNameWhatIsTold: a metric that is renamed would leave an alert
// that never fires; and where one Prometheus scrapes tenants too, their series count for
// nothing.
func TestAlertsAndDashboardNameWhatIsTold(t *testing.T) {
	series := []string{`up{job="imds-node-agent"}`, `kube_daemonset_status_number_unavailable{daemonset="imds-node-agent"}`}
	for _, file := range toldBy {
		series = append(series, strings.Fields(readFile(t, file))...)
	}
	checkAll := func(of any, least int, namespace string) {
		t.Helper()
		expressions := expressionsIn(of)
		if len(expressions) < least {
			t.Errorf("%d expressions: %q", len(expressions), expressions)
		}
		for _, expression := range expressions {
			if problem := problemOfExpression(expression, namespace, series); problem != "" {
				t.Errorf("%s: %s", expression, problem)
			}
		}
	}
	for namespace, want := range map[string]string{"": contract.Namespace, "platform-imds": "platform-imds"} {
		r := scraped(t, namespace)
		checkAll(r.custom["PrometheusRule/imds"], 7, want)
		checkAll(r.custom["PrometheusRule/imds-node-agent"], 4, contract.NodeNamespace)
		var dashboard struct{ Panels []map[string]any }
		if err := json.Unmarshal([]byte(r.custom["ConfigMap/imds-dashboard"]["data"].(map[string]any)["imds.json"].(string)), &dashboard); err != nil {
			t.Fatal(err)
		}
		for _, panel := range dashboard.Panels {
			variable := "$namespace" // that the viewer chooses
			if strings.Contains(fmt.Sprint(panel), "imds_agent") {
				variable = "$agents"
			}
			checkAll(panel, 1, variable)
		}
	}
	for expression, isWrong := range map[string]bool{
		`imds_a{namespace="n"} == 1`:                    false,
		`imds_a == 1`:                                   true,
		`imds_a{namespace="m"} == 1`:                    true,
		`imds_a{namespace="n"} + imds_a`:                true,
		`rate(imds_b{namespace="n",x=~"1|2"}[5m])`:      false,
		`imds_b{namespace="n",x!="1"}`:                  true,
		`imds_b{namespace="n",y="1"}`:                   true,
		`imds_a{namespace="n"} + imds_c{namespace="n"}`: true,
		`up == 0`:                            true,
		`vector(1)`:                          true,
		`imds_b{namespace="n",x!~"2|3"} > 0`: false,
		`sum by (x) (imds_b{namespace="n",x="1"})`:             false,
		`sum by (x) (imds_b{x="1",namespace="n"})`:             true, // where no replacement finds it
		`sum by (x) (imds_b{namespace=~"n",x="1"})`:            true,
		`count(kube_x{namespace="n"}) / imds_a{namespace="n"}`: true,
	} {
		if problem := problemOfExpression(expression, "n", []string{"imds_a", `imds_b{x="1"}`}); (problem != "") != isWrong {
			t.Errorf("%s: %q", expression, problem)
		}
	}
}

// TestAlertsPrintFixedWords: a pager shows nothing that a tenant has written, and each
// alert says what to do.
func TestAlertsPrintFixedWords(t *testing.T) {
	fixed := []string{"resource", "reason", "pod", "node"} // pods and nodes are the platform's
	r := scraped(t, "")
	for _, name := range []string{"PrometheusRule/imds", "PrometheusRule/imds-node-agent"} {
		group := r.custom[name]["spec"].(map[string]any)["groups"].([]any)[0].(map[string]any)
		for _, rule := range group["rules"].([]any) {
			rule := rule.(map[string]any)
			annotations := rule["annotations"].(map[string]any)
			if annotations["summary"] == nil || annotations["description"] == nil {
				t.Errorf("%v: annotations %v", rule["alert"], annotations)
			}
			for _, label := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(fmt.Sprint(annotations), -1) {
				if !slices.Contains(fixed, label[1]) {
					t.Errorf("%v prints the label %s", rule["alert"], label[1])
				}
			}
		}
	}
}

// TestPagesNameTheMetrics: the tables have each metric, with each value of its labels.
func TestPagesNameTheMetrics(t *testing.T) {
	for page, file := range toldBy {
		text := readFile(t, page)
		for series := range strings.Lines(readFile(t, file)) {
			name, labels, _ := strings.Cut(strings.TrimSpace(series), "{")
			names := []string{regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")}
			for _, label := range matcher.FindAllStringSubmatch(labels, -1) {
				if label[1] != "le" && label[1] != "resource" {
					names = append(names, label[1], label[3])
				}
			}
			for _, name := range names {
				if name != "" && !strings.Contains(text, "`"+name+"`") {
					t.Errorf("%s does not name %s", page, name)
				}
			}
		}
	}
}

// TestPrometheusFindsTheWebhook: the ServiceMonitor selects the Service, and its port
// is that of the probes, which the NetworkPolicy admits.
func TestPrometheusFindsTheWebhook(t *testing.T) {
	r := buildWith(t, "cert-manager", "metrics")
	spec := r.custom["ServiceMonitor/imds-webhook"]["spec"].(map[string]any)
	for name, value := range spec["selector"].(map[string]any)["matchLabels"].(map[string]any) {
		if r.service.Labels[name] != value {
			t.Errorf("it selects %s=%s, the Service has %v", name, value, r.service.Labels)
		}
	}
	endpoint := spec["endpoints"].([]any)[0].(map[string]any)
	i := slices.IndexFunc(r.service.Spec.Ports, func(p corev1.ServicePort) bool { return p.Name == endpoint["port"] })
	if i < 0 || r.service.Spec.Ports[i].TargetPort.StrVal != "health" {
		t.Fatalf("the endpoint %v is not at the Service's %+v", endpoint, r.service.Spec.Ports)
	}
	if admitted := r.networkPolicy.Spec.Ingress[0]; admitted.From != nil || !slices.ContainsFunc(admitted.Ports, func(p networkingv1.NetworkPolicyPort) bool { return p.Port.StrVal == "health" }) {
		t.Errorf("the NetworkPolicy admits %+v", admitted)
	}
	if label := r.custom["ConfigMap/imds-dashboard"]["metadata"].(map[string]any)["labels"].(map[string]any)["grafana_dashboard"]; label != "1" {
		t.Errorf("the dashboard's label is %v", label)
	}
}

// TestPrometheusFindsTheAgent: the port that is declared is the one that is served, on
// one address of the node, without a privilege, from the agent's own socket.
func TestPrometheusFindsTheAgent(t *testing.T) {
	r := decode(t, renderMine(t, "resources: [../kubevirt-imds/overlays/cert-manager]\ncomponents:\n- ../kubevirt-imds/kustomize/components/node-agent\n- ../kubevirt-imds/kustomize/components/node-agent-metrics\n", nil))
	containers := r.agent.daemonSet.Spec.Template.Spec.Containers
	if len(containers) != 2 || containers[0].Name != contract.NodeAgent {
		t.Fatalf("containers %+v", containers) // the first is what kubectl logs takes
	}
	agent, container := containers[0], containers[1]
	environment := map[string]corev1.EnvVar{}
	for i, variable := range container.Env {
		environment[variable.Name] = variable
		if variable.Name == "IMDS_METRICS_ADDRESS" && environment["NODE_IP"].ValueFrom == nil {
			t.Errorf("variable %d comes before the one that it is made of: %+v", i, container.Env)
		}
	}
	if from := environment["NODE_IP"].ValueFrom; from == nil || from.FieldRef.FieldPath != "status.hostIP" {
		t.Errorf("NODE_IP is %+v", from)
	}
	for _, node := range []string{"192.0.2.1", "2001:db8::1"} {
		address, err := net.ResolveTCPAddr("tcp", strings.Replace(environment["IMDS_METRICS_ADDRESS"].Value, "$(NODE_IP)", node, 1))
		if err != nil || address.IP.String() != node || int32(address.Port) != container.Ports[0].ContainerPort {
			t.Errorf("%v, %v; declared %+v", address, err, container.Ports)
		}
	}
	socket := environment["IMDS_METRICS_SOCKET"]
	isAt := func(m corev1.VolumeMount) bool {
		return m.Name == "status" && m.MountPath == filepath.Dir(socket.Value)
	}
	if !slices.Contains(agent.Env, socket) || !slices.ContainsFunc(agent.VolumeMounts, isAt) || !slices.ContainsFunc(container.VolumeMounts, isAt) {
		t.Errorf("the socket %+v is not in both of %+v and %+v", socket, agent, container)
	}
	if agent.Ports != nil || agent.Image != container.Image {
		t.Errorf("the agent has the ports %+v and the image %s, what serves its metrics %s", agent.Ports, agent.Image, container.Image)
	}
	server := serverIn(t, injectWith(t, nil, "cert-manager").Spec.InitContainers).SecurityContext
	server.Privileged = new(bool)
	if diff := cmp.Diff(server, container.SecurityContext); diff != "" {
		t.Errorf("other privileges than imds-server's in a VM's pod (-want +got):\n%s", diff)
	}
	spec := r.custom["PodMonitor/imds-node-agent"]["spec"].(map[string]any)
	if labels := spec["selector"].(map[string]any)["matchLabels"].(map[string]any); labels["app.kubernetes.io/name"] != contract.NodeAgent {
		t.Errorf("it selects %v", labels)
	}
	endpoint := spec["podMetricsEndpoints"].([]any)[0].(map[string]any)
	if port := endpoint["port"]; port != container.Ports[0].Name {
		t.Errorf("it asks port %v, declared is %+v", port, container.Ports)
	}
	if job := map[string]any{"targetLabel": "job", "replacement": contract.NodeAgent}; !slices.ContainsFunc(endpoint["relabelings"].([]any), func(one any) bool { return cmp.Equal(one, any(job)) }) {
		t.Errorf("the alerts ask for the job %s, labels are %v", contract.NodeAgent, endpoint["relabelings"])
	}
}
