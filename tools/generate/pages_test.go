package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"text/template"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/example/kubevirt-imds/injector/annotation"
	"github.com/example/kubevirt-imds/tools/generate/internal/contract"
)

// commandsFile says where each command runs that a page shows: by which script of the
// repository, which then has it, or where else.
const commandsFile = "tools/generate/testdata/commands.txt"

var (
	commentAtEnd  = regexp.MustCompile(`(^|\s+)# .*`)
	inlineCode    = regexp.MustCompile("`[^`]*`")
	linkTo        = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headingOrID   = regexp.MustCompile(`(?m)^#+ (.*)$|\bid="([^"]+)"`)
	notInAnAnchor = regexp.MustCompile(`\]\([^)]*\)|[^\p{L}\p{N}_ -]`)
	testName      = regexp.MustCompile(`\bTest[A-Z]\w+`)
	testFunc      = regexp.MustCompile(`(?m)^func (Test\w+)`)
)

// hasAnchor tells by GitHub's names for headings, and by the page's own ids.
func hasAnchor(page, anchor string) bool {
	return slices.ContainsFunc(headingOrID.FindAllStringSubmatch(page, -1), func(found []string) bool {
		return found[2] == anchor || strings.ReplaceAll(strings.ToLower(notInAnAnchor.ReplaceAllString(found[1], "")), " ", "-") == anchor
	})
}

// problemsOfPages are what is wrong with the pages of a repository: a command of which
// nobody says where it runs, a link that leads nowhere, a test that is not there.
func problemsOfPages(repository fs.FS) (problems []string, err error) {
	pages, tests := map[string]string{}, map[string]bool{}
	ignored, err := fs.ReadFile(repository, ".gitignore")
	if err != nil {
		return nil, err
	}
	err = fs.WalkDir(repository, ".", func(name string, entry fs.DirEntry, err error) error {
		if err == nil && slices.Contains(strings.Split(string(ignored), "\n"), "/"+name+"/") {
			return fs.SkipDir
		}
		isPage, isTest := strings.HasSuffix(name, ".md"), strings.HasSuffix(name, "_test.go")
		if err != nil || !isPage && !isTest {
			return err
		}
		content, err := fs.ReadFile(repository, name)
		if isPage {
			pages[name] = string(content)
		}
		for _, found := range testFunc.FindAllSubmatch(content, -1) {
			tests[string(found[1])] = true
		}
		return err
	})
	list, errList := fs.ReadFile(repository, commandsFile)
	if err != nil || errList != nil {
		return nil, fmt.Errorf("%v, %v", err, errList)
	}
	places, shown, place := map[string]string{}, map[string]bool{}, ""
	for line := range strings.Lines(string(list)) {
		if command := strings.TrimSpace(line); strings.HasPrefix(line, " ") {
			places[command] = place
		} else if !strings.HasPrefix(line, "#") {
			place = command
		}
	}
	for name, page := range pages {
		fence := "none"
		for number, line := range strings.Split(page, "\n") {
			report := func(format string, args ...any) {
				problems = append(problems, fmt.Sprintf("%s:%d: %s", name, number+1, fmt.Sprintf(format, args...)))
			}
			language, isFence := strings.CutPrefix(line, "```")
			_, command, isCommand := strings.Cut(line, "$ ") // the rest of a console is output
			if fence == "sh" {
				command = commentAtEnd.ReplaceAllString(line, "")
				isCommand = command != ""
			}
			switch {
			case isFence && fence != "none":
				fence = "none"
			case isFence:
				if fence = language; !slices.Contains([]string{"sh", "console", "yaml", "text"}, language) {
					report("a block of %q: want sh, console, yaml or text", language)
				}
			case (fence == "sh" || fence == "console") && isCommand:
				shown[command] = true
				if places[command] == "" {
					report("%s does not say where this runs: %s", commandsFile, command)
				} else if script, err := fs.ReadFile(repository, places[command]); err == nil && !strings.Contains(string(script), command) {
					report("%s does not run this: %s", places[command], command)
				}
			case fence == "none":
				for _, found := range linkTo.FindAllStringSubmatch(inlineCode.ReplaceAllString(line, ""), -1) {
					file, anchor, _ := strings.Cut(found[1], "#")
					target := path.Join(path.Dir(name), file)
					if file == "" {
						target = name
					}
					if _, err := fs.Stat(repository, target); !strings.Contains(file, "://") && (err != nil || anchor != "" && !hasAnchor(pages[target], anchor)) {
						report("the link %s leads nowhere", found[1])
					}
				}
			}
			for _, test := range testName.FindAllString(line, -1) {
				if !tests[test] {
					report("there is no test %s", test)
				}
			}
		}
	}
	for command := range places {
		if !shown[command] {
			problems = append(problems, fmt.Sprintf("%s: no page shows this: %s", commandsFile, command))
		}
	}
	slices.Sort(problems)
	return problems, nil
}

func TestPagesAreTrue(t *testing.T) {
	problems, err := problemsOfPages(os.DirFS(repository))
	if err != nil || len(problems) > 0 {
		t.Errorf("%v\n%s", err, strings.Join(problems, "\n"))
	}
}

func TestPagesThatAreWrong(t *testing.T) {
	good := "# A page, with [`code`](a.md)\n[a](a.md#a-page-with-code) `[b](b)` TestIt\n```sh\nmake it # so\nmake more\n```\n```console\n$ ask\nanswer\n```\n"
	for add, want := range map[string]string{
		"":                       "",
		"[b](#b)":                "a.md:11: the link #b leads nowhere",
		"[b](b.md)":              "a.md:11: the link b.md leads nowhere",
		"run TestNothing":        "a.md:11: there is no test TestNothing",
		"```\ndo":                `a.md:11: a block of "": want sh, console, yaml or text`,
		"```sh\nmake it all":     "a.md:12: " + commandsFile + " does not say where this runs: make it all",
		"```console\nroot$ lose": "a.md:12: ci does not run this: lose",
	} {
		list := "# a comment\nci\n  make it\n  make more\n  lose\na guest\n  ask\n"
		if !strings.HasSuffix(want, "lose") {
			list = strings.Replace(list, "  lose\n", "", 1)
		}
		// What the recipes make is nobody's page.
		files := fstest.MapFS{".gitignore": {Data: []byte("# made\n/dist/\n")}, "dist/v1/changes.md": {Data: []byte("[b](b.md)")}, "a.md": {Data: []byte(good + add)}, "a_test.go": {Data: []byte("func TestIt(")}, "ci": {Data: []byte("make it\nmake more")}, commandsFile: {Data: []byte(list)}}
		if got, err := problemsOfPages(files); err != nil || strings.Join(got, "\n") != want {
			t.Errorf("%q: %v, %q, want %q", add, err, got, want)
		}
	}
}

// TestListsOfSidecars: one row for each sidecar, whatever a tenant writes into a pod.
func TestListsOfSidecars(t *testing.T) {
	lists := regexp.MustCompile(`-o go-template='([^']*)'`).FindAllStringSubmatch(readFile(t, recipePage), -1)
	if len(lists) != 2 || lists[0][1] != lists[1][1] {
		t.Fatalf("%q, want one template twice", lists)
	}
	inNamespace := func(name string, pod *corev1.Pod) *corev1.Pod {
		pod.Namespace, pod.Name = "tenant-a", name
		return pod
	}
	hostile := launcherPod(map[string]string{annotation.Injected: "true", annotation.Version: "v1\ntenant-b virt-launcher-db", annotation.VMName: "\u009b2K\u202e"})
	hostile.Spec.InitContainers = []corev1.Container{{Name: contract.Server.Name, Image: "x\n\u009b2K\u202e\""}}
	content, err := json.Marshal(map[string]any{"items": []*corev1.Pod{
		inNamespace("usual", injectWith(t, nil, "cert-manager")),
		inNamespace("agents", injectWith(t, nil, "cert-manager", "node-agent")),
		inNamespace("regular", injectWith(t, nil, "cert-manager", "regular-containers")),
		inNamespace("others", launcherPod(map[string]string{})),
		inNamespace("hostile", hostile),
	}})
	if err != nil {
		t.Fatal(err)
	}
	var pods any
	if err := json.Unmarshal(content, &pods); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	if err := template.Must(template.New("").Parse(lists[0][1])).Execute(&got, pods); err != nil {
		t.Fatal(err)
	}
	want := `tenant-a usual imds-init "kubevirt-imds-server"
tenant-a usual imds-server "kubevirt-imds-server"
tenant-a agents imds-server "registry.example.com/imds/server:dev"
tenant-a regular imds-init "kubevirt-imds-server"
tenant-a hostile imds-server "x\n\u009b2K\u202e\""
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestPagesPrintNoAnnotationRaw: what a tenant writes would make rows of its own, and
// reach the terminal.
func TestPagesPrintNoAnnotationRaw(t *testing.T) {
	raw := regexp.MustCompile(`kubectl get.* (custom-columns|jsonpath|go-template)=.*\bannotations\b`)
	for line := range strings.Lines(readFile(t, recipePage)) {
		if raw.MatchString(line) {
			t.Errorf("%s", line)
		}
	}
}

// TestProfilesAreWhereTheKubeletLooks: a kubelet that has the pods' folder elsewhere has
// the seccomp profiles elsewhere, too.
func TestProfilesAreWhereTheKubeletLooks(t *testing.T) {
	page, err := os.ReadFile(repository + "/kustomize/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, components := range [][]string{{"node-agent"}, {"node-agent", "k0s"}, {"node-agent", "microk8s"}} {
		pods := buildWith(t, components...).agent.daemonSet.Spec.Template.Spec.Volumes[0].HostPath.Path
		if folder := "`" + path.Join(path.Dir(pods), "seccomp/imds") + "`"; !strings.Contains(string(page), folder) {
			t.Errorf("with %v the profiles are in %s, which kustomize/README.md does not say", components, folder)
		}
	}
}
