package podnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// qemuID is the user and the group that QEMU and passt run as in a virt-launcher
// pod, and that virt-handler gives the tap to.
const qemuID = 107

const tunDevice = "/dev/net/tun"

// openTap attaches to the tap of that name in the calling thread's network
// namespace, and makes it where it is missing. A tap that is not made
// persistent is gone when the file is closed. Each read and each write on the
// file is one Ethernet frame; without virtio headers the kernel segments and
// checksums before it hands a frame over. The file waits in the runtime's
// poller.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, tunError(err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = attachTap(fd, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("attaching to the tap %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// attachTap waits while a tap that was closed is still held: a child that was
// forked before the close has a copy of the descriptor until exec closes it,
// which is after a vfork has returned. No event tells of that.
func attachTap(fd int, request *unix.Ifreq) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}

// tunError explains the ways in which opening /dev/net/tun fails.
func tunError(err error) error {
	err = &fs.PathError{Op: "open", Path: tunDevice, Err: err}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: every user may open it where udev made it; run 'sudo chmod 0666 %s'", err, tunDevice)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: load the driver with 'sudo modprobe tun'; "+
			"in a container, pass the device in with '--device %s'", err, tunDevice)
	}
	return err
}

// makeTap leaves a persistent tap that nobody has open, so that it has no
// carrier, and that belongs to QEMU's user. In a user namespace that does not
// map that user it belongs to nobody in particular, which lets the namespace's
// root open it as well.
func makeTap(name string) error {
	file, err := openTap(name)
	if err != nil {
		return err
	}
	defer file.Close()
	for _, owner := range []uint{unix.TUNSETOWNER, unix.TUNSETGROUP} {
		if err := tapControl(file, owner, qemuID); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("giving the tap %s to uid and gid %d: %w", name, qemuID, err)
		}
	}
	if err := tapControl(file, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("making the tap %s persistent: %w", name, err)
	}
	return nil
}

// tapControl leaves the file in the runtime's poller, which File.Fd would not
// promise.
func tapControl(file *os.File, request uint, value int) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if outer := raw.Control(func(fd uintptr) { err = unix.IoctlSetInt(int(fd), request, value) }); outer != nil {
		return outer
	}
	return err
}
