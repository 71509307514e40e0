package openapi

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Spec is the cloud as a lab finds it: one region with one VPC of one account.
// It is plain data and goes through JSON.
type Spec struct {
	Region  string `json:"region"`
	Account string `json:"account"`
	VPC     string `json:"vpc"`
	// CIDRs are the VPC's ranges.
	CIDRs []netip.Prefix `json:"cidrs"`
	// RouteTable is the id of the system route table, SecurityGroup of the
	// one group that all interfaces are in.
	RouteTable    string `json:"routeTable"`
	SecurityGroup string `json:"securityGroup"`
	// Allowed are the sources from which the security group lets everything
	// in at first, apart from the VPC's own ranges.
	Allowed   []netip.Prefix `json:"allowed"`
	VSwitches []VSwitch      `json:"vswitches"`
	Instances []Instance     `json:"instances"`
	// Key is the AccessKey of a RAM user, Role the RAM role of the instances.
	Key  AccessKey `json:"key"`
	Role string    `json:"role"`
	// VendorKey is the AccessKey of another RAM user, so that the calls of the
	// vendor's programs are told from others; there is none when it is zero.
	VendorKey AccessKey `json:"vendorKey,omitzero"`
	// Settings are the first ones; Admin changes them.
	Settings Settings `json:"settings"`
}

// VSwitch is a subnet in one zone.
type VSwitch struct {
	ID   string `json:"id"`
	Zone string `json:"zone"`
	// CIDR is the IPv4 range, IPv6CIDR the IPv6 one; either may be zero.
	CIDR     netip.Prefix `json:"cidr,omitzero"`
	IPv6CIDR netip.Prefix `json:"ipv6CIDR,omitzero"`
}

// Instance is a virtual machine with one network interface.
type Instance struct {
	ID string `json:"id"`
	// Host is the VPC's name of the machine.
	Host    string `json:"host"`
	Type    string `json:"type"`
	VSwitch string `json:"vswitch"`
	// Interface is the id of its elastic network interface.
	Interface string       `json:"interface"`
	MAC       string       `json:"mac"`
	Addresses []netip.Addr `json:"addresses"`
	// Public are addresses of the outside that lead here: the first is the
	// machine's own, the second an elastic one. The VPC does not carry them.
	Public []netip.Addr `json:"public,omitempty"`
	// Status is the API's: Running, Stopped, ...
	Status string `json:"status"`
	// SourceDestCheck drops what is neither from nor to the interface's own
	// addresses. The vendor does not say how new interfaces have it; here it
	// is off.
	SourceDestCheck bool              `json:"sourceDestCheck"`
	Tags            map[string]string `json:"tags,omitempty"`
}

// AccessKey is a pair of credentials of a RAM user.
type AccessKey struct {
	ID     string `json:"id"`
	Secret string `json:"secret"`
}

// Principal is what a Call has of who signs with the key.
func (k AccessKey) Principal() string { return "user/" + k.ID }

// Settings can be changed while the cloud runs.
type Settings struct {
	// Delay is how long a route entry stays in a passing state, Latency how
	// long a call takes. The VPC has its writer for as long as a call takes.
	Delay   Duration `json:"delay"`
	Latency Duration `json:"latency"`
	// Quota is the number of custom entries in a route table.
	Quota int `json:"quota"`
	// Allow are the RAM actions that signed callers may use (vpc:Describe*);
	// all when empty.
	Allow []string `json:"allow,omitempty"`
	// KeyDisabled disables the AccessKey Key, RoleDetached takes the role from
	// the instances and ends what was issued for it.
	KeyDisabled  bool `json:"keyDisabled,omitempty"`
	RoleDetached bool `json:"roleDetached,omitempty"`
	// CredentialLife is how long credentials of the role are good for.
	CredentialLife Duration `json:"credentialLife"`
	// TokenRequired makes the metadata service answer with a token only (the
	// instances' security-hardening mode, IMDSv2).
	TokenRequired bool `json:"tokenRequired,omitempty"`
}

// DefaultQuota is the vendor's vpc_quota_route_entrys_num.
const DefaultQuota = 200

// DefaultSettings are a cloud with the vendor's quota that takes its time as
// the real one is said to.
func DefaultSettings() Settings {
	return Settings{
		Delay: Duration(2 * time.Second), Latency: Duration(50 * time.Millisecond),
		Quota: DefaultQuota, CredentialLife: Duration(6 * time.Hour),
	}
}

// Validate names what cannot be.
func (s Settings) Validate() error {
	var errs []error
	if s.Delay < 0 || s.Latency < 0 {
		errs = append(errs, fmt.Errorf("delay %s, latency %s: give no negative time", s.Delay, s.Latency))
	}
	if s.Quota < 0 {
		errs = append(errs, fmt.Errorf("quota %d: give 0 or more", s.Quota))
	}
	if s.CredentialLife <= 0 {
		errs = append(errs, fmt.Errorf("credentialLife %s: give a positive time", s.CredentialLife))
	}
	return errors.Join(errs...)
}

// Duration is a time.Duration that reads and writes as "2s".
type Duration time.Duration

// String is time.Duration's.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("read a duration such as 2s: %w", err)
	}
	*d = Duration(parsed)
	return nil
}
