package dataplane

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands of SIOCETHTOOL (the kernel's linux/ethtool.h).
const (
	ethtoolGetTxChecksum = 0x16
	ethtoolSetTxChecksum = 0x17
)

type ethtoolValue struct{ command, data uint32 }

// ifreq is the kernel's struct of that name, as SIOCETHTOOL reads it.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// computeChecksums makes a device compute the checksums of what it is given
// instead of leaving them to the interface below.
func (k *kernel) computeChecksums(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket, to set features of %s: %w", device, err)
	}
	defer unix.Close(fd)
	value := ethtoolValue{command: ethtoolGetTxChecksum}
	if err := ethtool(fd, device, &value); err != nil {
		return fmt.Errorf("read whether %s computes checksums: %w", device, err)
	}
	if value.data == 0 {
		return nil
	}
	value = ethtoolValue{command: ethtoolSetTxChecksum}
	if err := ethtool(fd, device, &value); err != nil {
		return fmt.Errorf("make %s compute checksums (ethtool -K %s tx off): %w", device, device, err)
	}
	k.wrote("checksums computed", "device", device)
	return nil
}

func ethtool(fd int, device string, value *ethtoolValue) error {
	req := ifreq{data: unsafe.Pointer(value)}
	copy(req.name[:len(req.name)-1], device)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}
