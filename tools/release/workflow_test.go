package main

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

type workflow struct {
	Permissions map[string]string
	Jobs        map[string]struct {
		Needs, Environment string
		Permissions        map[string]string
		Steps              []struct {
			Uses, Run string
			Env       map[string]string
		}
	}
}

// workflows are those of GitHub, by the names of their files.
func workflows(t *testing.T) map[string]workflow {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(repository, ".github/workflows/*.yml"))
	if err != nil || len(files) < 2 {
		t.Fatalf("%v, %v", files, err)
	}
	all := map[string]workflow{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var w workflow
		if err := yaml.Unmarshal(content, &w); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all[filepath.Base(file)] = w
	}
	return all
}

// TestWhoSignsBuildsNothing: a job that may write, or that has a secret, runs neither the tree nor packages without
// a lock file, and waits for the owners' approval.
func TestWhoSignsBuildsNothing(t *testing.T) {
	others := regexp.MustCompile(`\b(npx|npm|cargo|go|just|git)\s`)
	signers := 0
	for file, w := range workflows(t) {
		if slices.Contains(slices.Collect(maps.Values(w.Permissions)), "write") {
			t.Errorf("%s: all jobs may write", file)
		}
		for name, job := range w.Jobs {
			runs, signs := "", slices.Contains(slices.Collect(maps.Values(job.Permissions)), "write")
			for _, step := range job.Steps {
				runs += step.Run + "\n"
				signs = signs || strings.Contains(strings.Join(slices.Collect(maps.Values(step.Env)), " "), "secrets.")
			}
			if !signs {
				continue
			}
			signers++
			if job.Environment != "release" {
				t.Errorf("%s: the job %s is in the environment %q, want release", file, name, job.Environment)
			}
			if found := others.FindString(runs); found != "" {
				t.Errorf("%s: the job %s runs %s", file, name, found)
			}
			for _, step := range job.Steps {
				if strings.HasPrefix(step.Uses, "actions/checkout@") || strings.HasPrefix(step.Uses, "actions/setup-") {
					t.Errorf("%s: the job %s has %s", file, name, step.Uses)
				}
			}
			if !strings.Contains(runs, "sha256sum --check --strict SHA256SUMS") {
				t.Errorf("%s: the job %s does not check what it was given", file, name)
			}
			builder := ""
			for _, step := range w.Jobs[job.Needs].Steps {
				builder += step.Run + "\n"
			}
			if !strings.Contains(builder, "git merge-base --is-ancestor HEAD origin/main") {
				t.Errorf("%s: nobody checks before the job %s that the commit is on main", file, name)
			}
		}
	}
	if signers != 1 {
		t.Errorf("%d jobs may write, want 1", signers)
	}
}

// TestWhatCIRunsIsPinned: actions by their commit, just by its version, and in workflows by the hashes of its lock file.
func TestWhatCIRunsIsPinned(t *testing.T) {
	for file, w := range workflows(t) {
		for name, job := range w.Jobs {
			for _, step := range job.Steps {
				if step.Uses != "" && !regexp.MustCompile(`@[0-9a-f]{40}$`).MatchString(step.Uses) {
					t.Errorf("%s: the job %s has %s, want a commit", file, name, step.Uses)
				}
				if found := regexp.MustCompile(`\bnp[mx] .*|cargo install .*`).FindString(step.Run); found != "" && !strings.HasPrefix(found, "cargo install just --locked --version 1.57.0") {
					t.Errorf("%s: the job %s runs %s", file, name, found)
				}
			}
		}
	}
	content, err := os.ReadFile(filepath.Join(repository, ".ci/run"))
	if err != nil {
		t.Fatal(err)
	}
	script := string(content)
	if !strings.Contains(script, "\njust_version=1.57.0\n") || strings.Contains(script, "npx") || strings.Count(script, "rust-just") != strings.Count(script, "rust-just@$just_version") {
		t.Error(".ci/run: a just without a version")
	}
}
