package v1alpha1

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The limits of MetadataAccess that the CRD's rules name too.
const (
	maxMetadataNamespaces = 64
	maxMetadataAddresses  = 16
	maxNamespace          = 63

	namespacePattern = `^([a-z0-9]([-a-z0-9]*[a-z0-9])?|\*)$`
)

func validateMetadataAccess(at *field.Path, m *MetadataAccess) field.ErrorList {
	if m == nil {
		return nil
	}
	namespaces, addresses := at.Child("namespaces"), at.Child("addresses")
	var errs field.ErrorList
	if n := len(m.Namespaces); n > maxMetadataNamespaces {
		errs = append(errs, field.TooMany(namespaces, n, maxMetadataNamespaces))
	}
	for i, s := range m.Namespaces {
		if len(s) > maxNamespace || !regexp.MustCompile(namespacePattern).MatchString(s) {
			errs = append(errs, field.Invalid(namespaces.Index(i), s, fmt.Sprintf("must be the name of a namespace, %d characters at most, or * for all", maxNamespace)))
		}
		if slices.Contains(m.Namespaces[:i], s) {
			errs = append(errs, field.Duplicate(namespaces.Index(i), s))
		}
	}
	if n := len(m.Addresses); n > maxMetadataAddresses {
		errs = append(errs, field.TooMany(addresses, n, maxMetadataAddresses))
	}
	for i, s := range m.Addresses {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsLoopback() {
			errs = append(errs, field.Invalid(addresses.Index(i), s, "must be an address such as 100.100.100.200 or fd00:ec2::254"))
		}
		if slices.Contains(m.Addresses[:i], s) {
			errs = append(errs, field.Duplicate(addresses.Index(i), s))
		}
	}
	return errs
}
