package v1alpha1

import (
	"net/netip"
	"strings"
)

// BlockName returns the name of the AddressBlock that leases a range: the
// canonical CIDR with a dash for each dot, colon and slash, as the CRD demands.
// Because the name is the range, creating the object is an atomic claim. The
// range must have no bits set behind its prefix (see netip.Prefix.Masked).
func BlockName(cidr netip.Prefix) string {
	return strings.NewReplacer(".", "-", ":", "-", "/", "-").Replace(cidr.String())
}
