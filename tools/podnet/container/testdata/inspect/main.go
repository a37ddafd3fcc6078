// Command inspect tells what a process inside a container sees. It is built
// without cgo, as the program of an image FROM scratch must be.
package main

import (
	"encoding/json"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	switch os.Args[len(os.Args)-1] {
	case "wait": // for SIGTERM
		terminated := make(chan os.Signal, 1)
		signal.Notify(terminated, syscall.SIGTERM)
		os.Stdout.WriteString("ready\n")
		<-terminated
		return
	case "ignore": // SIGTERM
		signal.Ignore(syscall.SIGTERM)
		os.Stdout.WriteString("ready\n")
		time.Sleep(time.Hour)
	case "fail":
		os.Stderr.WriteString("first line\nlast words\n")
		os.Exit(3)
	}
	seen := map[string]any{
		"args":   os.Args,
		"env":    os.Environ(),
		"uid":    os.Getuid(),
		"gid":    os.Getgid(),
		"pid":    os.Getpid(),
		"groups": groups(),
		"root":   names("/"),
	}
	seen["host"], _ = os.Hostname()
	seen["status"] = status()
	seen["netfilter"] = netfilter()
	var writable []string
	for _, path := range []string{"/", "/inspect", "/ro", "/rw", "/proc/sys/kernel"} {
		if syscall.Access(path, 2) == nil { // W_OK; a read-only file system says EROFS also to root
			writable = append(writable, path)
		}
	}
	seen["writable"] = writable
	if content, err := os.ReadFile("/ro/file"); err == nil {
		seen["file"] = string(content)
	}
	json.NewEncoder(os.Stdout).Encode(seen)
}

// netfilter says what is wrong with a socket to nf_tables.
func netfilter() string {
	const netlinkNetfilter = 12 // NETLINK_NETFILTER of include/uapi/linux/netlink.h
	socket, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW, netlinkNetfilter)
	if err != nil {
		return err.Error()
	}
	syscall.Close(socket)
	return ""
}

func groups() []int {
	all, _ := os.Getgroups()
	return all
}

func names(folder string) []string {
	entries, _ := os.ReadDir(folder)
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// status is the part of /proc/self/status about privileges.
func status() map[string]string {
	text, _ := os.ReadFile("/proc/self/status")
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		if strings.HasPrefix(key, "Cap") || key == "NoNewPrivs" {
			fields[key] = strings.TrimSpace(value)
		}
	}
	return fields
}
