package podlink

import (
	"errors"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/offload"
)

// segmentTunnels has the packets of the pod's own tunnels (an overlay inside the
// pod, nested protocol 4) cut to size before they leave the pod. Held back as one
// large packet, as the kernel does by default, such a packet says that it is
// encapsulated, which it can say once: the ipip transport's header would be a
// second time, and the kernel drops the segments of what cannot say so. The
// pod's other packets stay large.
func segmentTunnels(link int) error {
	err := offload.Change(link, map[string]bool{
		"tx-udp_tnl-segmentation": false, "tx-udp_tnl-csum-segmentation": false,
		"tx-gre-segmentation": false, "tx-gre-csum-segmentation": false,
		"tx-ipxip4-segmentation": false, "tx-ipxip6-segmentation": false,
	})
	if errors.Is(err, unix.ENOENT) {
		return nil // a kernel without ethtool's netlink family: only such tunnels would miss it
	}
	return err
}
