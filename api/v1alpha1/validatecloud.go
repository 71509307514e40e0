package v1alpha1

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The limits of CloudSpec that the CRD's rules name too.
const (
	maxRouteTables        = 16
	maxVPCCIDRs           = 16
	shortestVPCCIDR       = 8
	maxCloudID            = 64
	maxFixedAddressRoutes = 200
	maxCloudEndpoint      = 256
	maxSecretName         = 253

	regionPattern  = `^([a-z0-9]+(-[a-z0-9]+)*)?$`
	cloudIDPattern = `^[A-Za-z0-9-]*$`
	secretPattern  = `^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$`
)

func validateCloud(at *field.Path, c *CloudSpec) field.ErrorList {
	if c == nil {
		return nil
	}
	var errs field.ErrorList
	switch c.Provider {
	case "", CloudAlibaba:
	default:
		errs = append(errs, field.NotSupported(at.Child("provider"), c.Provider, []CloudProvider{CloudAlibaba}))
	}
	errs = append(errs, validateDuties(at, c)...)
	if c.Provider != "" && c.RegionID == "" {
		errs = append(errs, field.Required(at.Child("regionID"), "a cloud provider needs the region, such as cn-chengdu"))
	}
	if c.Provider != "" && c.VPCID == "" {
		errs = append(errs, field.Required(at.Child("vpcID"), "a cloud provider needs the VPC that the nodes are in"))
	}
	return append(errs, validateCloudFields(at, c)...)
}

func validateDuties(at *field.Path, c *CloudSpec) field.ErrorList {
	var errs field.ErrorList
	known := []CloudDuty{DutyRopeway, DutyExternal, DutyOff}
	for _, duty := range []struct {
		name  string
		value CloudDuty
	}{{"routes", c.Routes}, {"nodes", c.Nodes}, {"loadBalancers", c.LoadBalancers}} {
		if !slices.Contains(known, duty.value) {
			errs = append(errs, field.NotSupported(at.Child(duty.name), duty.value, known))
		}
	}
	if c.Nodes == DutyRopeway && c.Provider == "" {
		errs = append(errs, field.Invalid(at.Child("nodes"), c.Nodes, "needs a cloud to ask about instances: give provider"))
	}
	switch n := c.FixedAddressRoutes; {
	case n < 0 || n > maxFixedAddressRoutes:
		errs = append(errs, field.Invalid(at.Child("fixedAddressRoutes"), n, fmt.Sprintf("must be from 0 to %d", maxFixedAddressRoutes)))
	case n > 0 && !c.PublishesRoutes():
		errs = append(errs, field.Invalid(at.Child("fixedAddressRoutes"), n, "entries are made where Ropeway publishes the routes: give provider, and routes: ropeway"))
	}
	if c.LoadBalancers == DutyRopeway {
		errs = append(errs, field.Invalid(at.Child("loadBalancers"), c.LoadBalancers,
			"this version makes no load balancers: leave them to external (the vendor's cloud controller manager), or set off"))
	}
	return errs
}

// validateCloudFields looks at each field alone.
func validateCloudFields(at *field.Path, c *CloudSpec) field.ErrorList {
	var errs field.ErrorList
	check := func(at *field.Path, value, pattern string, most int, want string) {
		if len(value) > most || !regexp.MustCompile(pattern).MatchString(value) {
			errs = append(errs, field.Invalid(at, value, fmt.Sprintf("%s, %d characters at most", want, most)))
		}
	}
	check(at.Child("regionID"), c.RegionID, regionPattern, maxCloudID, "must be small letters and digits with dashes between them, such as cn-chengdu")
	check(at.Child("vpcID"), c.VPCID, cloudIDPattern, maxCloudID, "must be letters, digits and dashes")
	check(at.Child("endpoint"), c.Endpoint, "", maxCloudEndpoint, "must be a host")
	check(at.Child("credentialsSecret"), c.CredentialsSecret, secretPattern, maxSecretName, "must be the name of a Secret")
	if n := len(c.RouteTableIDs); n > maxRouteTables {
		errs = append(errs, field.TooMany(at.Child("routeTableIDs"), n, maxRouteTables))
	}
	for i, t := range c.RouteTableIDs {
		one := at.Child("routeTableIDs").Index(i)
		if check(one, t, cloudIDPattern, maxCloudID, "must be letters, digits and dashes"); t == "" {
			errs = append(errs, field.Required(one, "an empty id names no route table"))
		}
		if slices.Contains(c.RouteTableIDs[:i], t) {
			errs = append(errs, field.Duplicate(one, t))
		}
	}
	return append(errs, validateVPCCIDRs(at.Child("vpcCIDRs"), c.VPCCIDRs)...)
}

func validateVPCCIDRs(at *field.Path, cidrs []string) field.ErrorList {
	var errs field.ErrorList
	if len(cidrs) > maxVPCCIDRs {
		errs = append(errs, field.TooMany(at, len(cidrs), maxVPCCIDRs))
	}
	for i, s := range cidrs {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil || p.Addr().Is4In6():
			errs = append(errs, field.Invalid(at.Index(i), s, "not a CIDR such as 192.168.0.0/16"))
		case p != p.Masked():
			errs = append(errs, field.Invalid(at.Index(i), s, fmt.Sprintf("has bits set behind its prefix: write %s", p.Masked())))
		case p.Bits() < shortestVPCCIDR:
			errs = append(errs, field.Invalid(at.Index(i), s, fmt.Sprintf("must be /%d or longer: it is the VPC's own range, not the world", shortestVPCCIDR)))
		case slices.Contains(cidrs[:i], s):
			errs = append(errs, field.Duplicate(at.Index(i), s))
		}
	}
	return errs
}
