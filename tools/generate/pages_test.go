package main

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
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
