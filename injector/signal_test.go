package main

import (
	"crypto/x509"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// TestMain is the real program where a test starts this binary as such.
func TestMain(m *testing.M) {
	if os.Getenv("IMDS_WEBHOOK_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	log := newLogBuffer()
	w := &webhook{t: t, certFile: t.TempDir() + "/tls.crt", keyFile: t.TempDir() + "/tls.key", ca: x509.NewCertPool()}
	w.renewCertificate(time.Hour)
	command := exec.Command(os.Args[0], "--tls-cert", w.certFile, "--tls-key", w.keyFile, "--patches", declaredPatches, "--server-image", serverImage,
		"--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0")
	command.Env = append(os.Environ(), "IMDS_WEBHOOK_MAIN=1")
	command.Stderr = log
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer command.Process.Kill()
	log.wait(t, "msg=listening")
	for _, event := range []string{"draining", ""} {
		if err := command.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if event != "" {
			log.wait(t, event)
		}
	}
	err := command.Wait()
	if status, ok := command.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGTERM {
		t.Errorf("ended with %v; log:\n%s", err, log)
	}
}
