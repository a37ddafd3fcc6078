package podnet

import (
	"os/exec"
	"testing"
)

// A child that is forked while a tap is closed holds a copy of its descriptor
// until exec.
func TestAClosedTapCanBeOpenedAgain(t *testing.T) {
	needTaps(t)
	n := newNamespace(t)
	enough, forked := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-enough:
				forked <- nil
				return
			default:
				if err := exec.Command("true").Run(); err != nil {
					forked <- err
					return
				}
			}
		}
	}()
	for range 500 {
		err := n.Do(func() error {
			file, err := openTap("tap0")
			if err != nil {
				return err
			}
			return file.Close()
		})
		if err != nil {
			t.Error(err)
			break
		}
	}
	close(enough)
	if err := <-forked; err != nil {
		t.Error(err)
	}
}
