package v1alpha1_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/test/apiserver"
)

// shared is the API server of the package's tests.
var shared apiserver.Shared

func TestMain(m *testing.M) { os.Exit(shared.Main(m)) }

func realAPI(t *testing.T) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(shared.Config(t), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// specCase is a spec as a person writes it. refused is a part of what the API
// server answers, "" when it accepts; field is what Validate names.
type specCase struct {
	name, spec     string
	refused, field string
}

func specCases() []specCase {
	return []specCase{
		{name: "the smallest", spec: `podCIDRs: [10.244.0.0/16]`},
		{name: "dual-stack", spec: `podCIDRs: [10.244.0.0/16, "fd00:10:244::/48"]`},
		{name: "two ranges side by side", spec: `podCIDRs: [10.244.0.0/17, 10.244.128.0/17]`},
		{name: "everything set", spec: `{podCIDRs: [10.244.0.0/16], addressSource: NodeCIDR, blockSize: {ipv4: 24, ipv6: 120},
			transports: [vxlan], vxlan: {port: 8472, vni: 7}, mtu: 1400, nat: {outgoing: false}}`},
		{name: "smallest MTU by word", spec: `{podCIDRs: [10.244.0.0/16], mtu: smallest}`},
		{name: "small range without blocks", spec: `{podCIDRs: [10.244.0.0/28], addressSource: NodeCIDR}`},
		{name: "as many ranges as allowed", spec: `podCIDRs: [` + strings.Join(manyCIDRs(16), ", ") + `]`},

		{name: "direct with fallback", spec: `{podCIDRs: [10.244.0.0/16], addressSource: NodeCIDR, transports: [direct, ipip, vxlan]}`},
		{name: "direct, strictly", spec: `{podCIDRs: [10.244.0.0/16], addressSource: NodeCIDR, transports: [direct]}`},
		{name: "a cloud", spec: `{podCIDRs: [10.244.0.0/16], transports: [direct, ipip], cloud: {provider: alibaba, regionID: cn-chengdu, vpcID: vpc-2vc1,
			routeTableIDs: [vtb-1, vtb-2], vpcCIDRs: [192.168.0.0/16], endpoint: "http://100.100.0.10:8080", credentialsSecret: ropeway-cloud}}`},
		{name: "a cloud whose routes are another's", spec: `{podCIDRs: [10.244.0.0/16], cloud: {provider: alibaba, regionID: cn-chengdu, vpcID: vpc-2vc1, routes: external}}`},
		{name: "a cloud whose nodes are ours", spec: `{podCIDRs: [10.244.0.0/16], cloud: {provider: alibaba, regionID: cn-chengdu, vpcID: vpc-2vc1, nodes: ropeway, loadBalancers: "off"}}`},
		{name: "pods that ask the metadata service", spec: `{podCIDRs: [10.244.0.0/16], metadataAccess: {namespaces: [kube-system, "*"], addresses: [100.100.100.200, "fd00:ec2::254"]}}`},
		{name: "entries for fixed addresses", spec: `{podCIDRs: [10.244.0.0/16], cloud: {provider: alibaba, regionID: cn-chengdu, vpcID: vpc-2vc1, fixedAddressRoutes: 200}}`},
		{name: "no cloud but its ranges", spec: `{podCIDRs: [10.244.0.0/16], cloud: {vpcCIDRs: [192.168.0.0/16]}}`},

		{name: "no podCIDRs", spec: `transports: [ipip]`, refused: "spec.podCIDRs: Required value", field: "spec.podCIDRs"},
		{name: "empty podCIDRs", spec: `podCIDRs: []`, refused: "spec.podCIDRs", field: "spec.podCIDRs"},
		{name: "too many podCIDRs", spec: `podCIDRs: [` + strings.Join(manyCIDRs(17), ", ") + `]`, refused: "spec.podCIDRs: Too many", field: "spec.podCIDRs"},
		{name: "not a CIDR", spec: `podCIDRs: [10.244.0.0]`, refused: `spec.podCIDRs[0]: Invalid value: "10.244.0.0": must be a CIDR`, field: "spec.podCIDRs[0]"},
		{name: "second not a CIDR", spec: `podCIDRs: [10.244.0.0/16, pods]`, refused: `spec.podCIDRs[1]: Invalid value: "pods": must be a CIDR`, field: "spec.podCIDRs[1]"},
		{name: "prefix too long for the family", spec: `podCIDRs: [10.244.0.0/33]`, refused: "must be a CIDR", field: "spec.podCIDRs[0]"},
		{name: "bits behind the prefix", spec: `podCIDRs: [10.244.3.0/16]`, refused: "no bits set behind the prefix", field: "spec.podCIDRs[0]"},
		{name: "IPv6 bits behind the prefix", spec: `podCIDRs: ["fd00:10:244::1/48"]`, refused: "no bits set behind the prefix", field: "spec.podCIDRs[0]"},
		{name: "IPv4 written as IPv6", spec: `podCIDRs: ["::ffff:10.244.0.0/112"]`, refused: "must be a CIDR", field: "spec.podCIDRs[0]"},
		{name: "range too wide", spec: `podCIDRs: [0.0.0.0/0]`, refused: "must be from /8 to /29", field: "spec.podCIDRs[0]"},
		{name: "range too small", spec: `{podCIDRs: [10.244.0.0/30], addressSource: NodeCIDR}`, refused: "must be from /8 to /29", field: "spec.podCIDRs[0]"},
		{name: "IPv6 range too small", spec: `{podCIDRs: ["fd00::/126"], addressSource: NodeCIDR}`, refused: "must be from /8 to /29 for IPv4, from /16 to /125", field: "spec.podCIDRs[0]"},
		{name: "overlap", spec: `podCIDRs: [10.244.0.0/16, 10.244.4.0/22]`, refused: "podCIDRs overlap", field: "spec.podCIDRs[1]"},
		{name: "overlap, the wider last", spec: `podCIDRs: [10.244.4.0/22, 10.244.0.0/16]`, refused: "podCIDRs overlap", field: "spec.podCIDRs[1]"},
		{name: "IPv6 overlap", spec: `podCIDRs: ["fd00:10:244::/48", "fd00:10:244:8000::/49"]`, refused: "podCIDRs overlap", field: "spec.podCIDRs[1]"},
		{name: "the same twice", spec: `podCIDRs: [10.244.0.0/16, 10.244.0.0/16]`, refused: "overlap", field: "spec.podCIDRs[1]"},
		{name: "unknown source", spec: `{podCIDRs: [10.244.0.0/16], addressSource: Magic}`, refused: "spec.addressSource: Unsupported value", field: "spec.addressSource"},
		{name: "block too large", spec: `{podCIDRs: [10.244.0.0/16], blockSize: {ipv4: 19}}`, refused: "spec.blockSize.ipv4", field: "spec.blockSize.ipv4"},
		{name: "block too small", spec: `{podCIDRs: [10.244.0.0/16], blockSize: {ipv4: 32}}`, refused: "spec.blockSize.ipv4", field: "spec.blockSize.ipv4"},
		{name: "IPv6 block too large", spec: `{podCIDRs: ["fd00::/48"], blockSize: {ipv6: 111}}`, refused: "spec.blockSize.ipv6", field: "spec.blockSize.ipv6"},
		{name: "block larger than the range", spec: `podCIDRs: [10.244.0.0/28]`, refused: "blocks are larger than one of podCIDRs", field: "spec.blockSize.ipv4"},
		{name: "IPv6 block larger than the range", spec: `{podCIDRs: ["fd00::/124"]}`, refused: "blocks are larger than one of podCIDRs", field: "spec.blockSize.ipv6"},
		{name: "unknown transport", spec: `{podCIDRs: [10.244.0.0/16], transports: [gre]}`, refused: `spec.transports[0]: Unsupported value: "gre": supported values: "direct", "ipip", "vxlan"`, field: "spec.transports[0]"},
		{name: "transport twice", spec: `{podCIDRs: [10.244.0.0/16], transports: [ipip, ipip]}`, refused: "Duplicate value", field: "spec.transports[1]"},
		{name: "unknown cloud", spec: `{podCIDRs: [10.244.0.0/16], cloud: {provider: moon, regionID: a, vpcID: b}}`, refused: `spec.cloud.provider: Unsupported value: "moon"`, field: "spec.cloud.provider"},
		{name: "unknown duty", spec: `{podCIDRs: [10.244.0.0/16], cloud: {routes: maybe}}`, refused: `spec.cloud.routes: Unsupported value: "maybe"`, field: "spec.cloud.routes"},
		{name: "unknown duty of nodes", spec: `{podCIDRs: [10.244.0.0/16], cloud: {nodes: maybe}}`, refused: `spec.cloud.nodes: Unsupported value: "maybe"`, field: "spec.cloud.nodes"},
		{name: "nodes without a cloud", spec: `{podCIDRs: [10.244.0.0/16], cloud: {nodes: ropeway}}`, refused: "give provider", field: "spec.cloud.nodes"},
		{name: "entries for fixed addresses without a cloud", spec: `{podCIDRs: [10.244.0.0/16], cloud: {fixedAddressRoutes: 1}}`, refused: "give provider, and routes: ropeway", field: "spec.cloud.fixedAddressRoutes"},
		{name: "entries for fixed addresses beside another's routes", spec: `{podCIDRs: [10.244.0.0/16], cloud: {provider: alibaba, regionID: cn-chengdu, vpcID: vpc-2vc1, routes: external, fixedAddressRoutes: 1}}`,
			refused: "give provider, and routes: ropeway", field: "spec.cloud.fixedAddressRoutes"},
		{name: "too many entries for fixed addresses", spec: `{podCIDRs: [10.244.0.0/16], cloud: {provider: alibaba, regionID: cn-chengdu, vpcID: vpc-2vc1, fixedAddressRoutes: 201}}`,
			refused: "spec.cloud.fixedAddressRoutes: Invalid value", field: "spec.cloud.fixedAddressRoutes"},
		{name: "load balancers", spec: `{podCIDRs: [10.244.0.0/16], cloud: {provider: alibaba, regionID: cn-chengdu, vpcID: vpc-2vc1, loadBalancers: ropeway}}`,
			refused: "spec.cloud.loadBalancers: Invalid value: \"ropeway\": this version makes no load balancers", field: "spec.cloud.loadBalancers"},
		{name: "cloud without region", spec: `{podCIDRs: [10.244.0.0/16], cloud: {provider: alibaba, vpcID: vpc-1}}`, refused: "give regionID", field: "spec.cloud.regionID"},
		{name: "cloud without VPC", spec: `{podCIDRs: [10.244.0.0/16], cloud: {provider: alibaba, regionID: cn-chengdu}}`, refused: "give vpcID", field: "spec.cloud.vpcID"},
		{name: "region that is none", spec: `{podCIDRs: [10.244.0.0/16], cloud: {regionID: "cn chengdu"}}`, refused: "spec.cloud.regionID: Invalid value", field: "spec.cloud.regionID"},
		{name: "VPC that is none", spec: `{podCIDRs: [10.244.0.0/16], cloud: {vpcID: "vpc/1"}}`, refused: "spec.cloud.vpcID: Invalid value", field: "spec.cloud.vpcID"},
		{name: "empty route table", spec: `{podCIDRs: [10.244.0.0/16], cloud: {routeTableIDs: [""]}}`, refused: "spec.cloud.routeTableIDs[0]", field: "spec.cloud.routeTableIDs[0]"},
		{name: "route table twice", spec: `{podCIDRs: [10.244.0.0/16], cloud: {routeTableIDs: [vtb-1, vtb-1]}}`, refused: "Duplicate value", field: "spec.cloud.routeTableIDs[1]"},
		{name: "VPC range that is the world", spec: `{podCIDRs: [10.244.0.0/16], cloud: {vpcCIDRs: [0.0.0.0/0]}}`, refused: "must be /8 or longer", field: "spec.cloud.vpcCIDRs[0]"},
		{name: "VPC range with bits behind", spec: `{podCIDRs: [10.244.0.0/16], cloud: {vpcCIDRs: [192.168.1.0/16]}}`, refused: "no bits set behind the prefix", field: "spec.cloud.vpcCIDRs[0]"},
		{name: "VPC range that is none", spec: `{podCIDRs: [10.244.0.0/16], cloud: {vpcCIDRs: [vpc]}}`, refused: "must be a CIDR", field: "spec.cloud.vpcCIDRs[0]"},
		{name: "Secret with a namespace", spec: `{podCIDRs: [10.244.0.0/16], cloud: {credentialsSecret: kube-system/keys}}`, refused: "spec.cloud.credentialsSecret", field: "spec.cloud.credentialsSecret"},
		{name: "namespace that is none", spec: `{podCIDRs: [10.244.0.0/16], metadataAccess: {namespaces: [kube-system, Kube]}}`, refused: "spec.metadataAccess.namespaces[1]", field: "spec.metadataAccess.namespaces[1]"},
		{name: "namespace twice", spec: `{podCIDRs: [10.244.0.0/16], metadataAccess: {namespaces: [a, a]}}`, refused: "Duplicate value", field: "spec.metadataAccess.namespaces[1]"},
		{name: "metadata service that is none", spec: `{podCIDRs: [10.244.0.0/16], metadataAccess: {addresses: [metadata]}}`, refused: "must be an address such as 100.100.100.200", field: "spec.metadataAccess.addresses[0]"},
		{name: "metadata service everywhere", spec: `{podCIDRs: [10.244.0.0/16], metadataAccess: {addresses: [0.0.0.0]}}`, refused: "must be an address", field: "spec.metadataAccess.addresses[0]"},
		{name: "metadata service twice", spec: `{podCIDRs: [10.244.0.0/16], metadataAccess: {addresses: [100.100.100.200, 100.100.100.200]}}`, refused: "Duplicate value", field: "spec.metadataAccess.addresses[1]"},
		{name: "port 0", spec: `{podCIDRs: [10.244.0.0/16], vxlan: {port: 70000}}`, refused: "spec.vxlan.port", field: "spec.vxlan.port"},
		{name: "VNI too large", spec: `{podCIDRs: [10.244.0.0/16], vxlan: {vni: 16777216}}`, refused: "spec.vxlan.vni", field: "spec.vxlan.vni"},
		{name: "MTU too small", spec: `{podCIDRs: [10.244.0.0/16], mtu: 1279}`, refused: "spec.mtu: Invalid value: 1279: must be perRoute, smallest", field: "spec.mtu"},
		{name: "MTU too large", spec: `{podCIDRs: [10.244.0.0/16], mtu: 65536}`, refused: "spec.mtu: Invalid value: 65536: must be perRoute, smallest", field: "spec.mtu"},
		{name: "MTU an unknown word", spec: `{podCIDRs: [10.244.0.0/16], mtu: jumbo}`, refused: `spec.mtu: Invalid value: "jumbo": must be perRoute, smallest`, field: "spec.mtu"},
	}
}

func manyCIDRs(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("10.%d.0.0/16", i))
	}
	return out
}

func network(t *testing.T, name, spec string) *unstructured.Unstructured {
	t.Helper()
	var m map[string]any
	if err := yaml.Unmarshal([]byte(spec), &m); err != nil {
		t.Fatalf("the test's YAML: %v", err)
	}
	u := &unstructured.Unstructured{Object: map[string]any{"spec": m}}
	u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("ClusterNetwork"))
	u.SetName(name)
	return u
}

// TestSpecsAreRefusedAlike holds the CRD's rules and Validate together: both
// refuse the same specs, and each says which field and why.
func TestSpecsAreRefusedAlike(t *testing.T) {
	c := realAPI(t)
	for _, tc := range specCases() {
		t.Run(tc.name, func(t *testing.T) {
			u := network(t, "default", tc.spec)
			err := c.Create(t.Context(), u, client.DryRunAll)
			if !matches(err, tc.refused) {
				t.Errorf("the API server answered %v; want %q", err, tc.refused)
			}
			var cn v1alpha1.ClusterNetwork
			if err := yaml.Unmarshal([]byte("spec: "+strings.TrimSpace(indent(tc.spec))), &cn); err != nil {
				t.Fatalf("the test's YAML: %v", err)
			}
			v1alpha1.Defaults(&cn.Spec)
			if err := v1alpha1.Validate(&cn.Spec); !matches(err, tc.field) {
				t.Errorf("Validate said %v; want %q", err, tc.field)
			}
			if tc.refused == "" {
				sameAsDefaults(t, u, &cn.Spec)
			}
		})
	}
}

// indent makes a spec a nested value; flow style stays as it is.
func indent(spec string) string {
	if strings.HasPrefix(spec, "{") {
		return spec
	}
	return "{" + spec + "}"
}

func matches(err error, want string) bool {
	if err == nil || want == "" {
		return err == nil && want == ""
	}
	return strings.Contains(err.Error(), want)
}

// sameAsDefaults holds Defaults and the CRD's defaults together.
func sameAsDefaults(t *testing.T, answered *unstructured.Unstructured, defaulted *v1alpha1.ClusterNetworkSpec) {
	t.Helper()
	var cn v1alpha1.ClusterNetwork
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(answered.Object, &cn); err != nil {
		t.Fatal(err)
	}
	got, _ := yaml.Marshal(cn.Spec)
	want, _ := yaml.Marshal(defaulted)
	if string(got) != string(want) {
		t.Errorf("the API server filled in\n%s\nDefaults filled in\n%s", got, want)
	}
}

func TestSpecialRangesAreRefusedByValidate(t *testing.T) {
	for _, cidr := range []string{"127.0.0.0/16", "169.254.0.0/16", "224.0.0.0/8", "240.0.0.0/8", "0.0.0.0/8", "fe80::/16", "ff00::/16", "::/16"} {
		spec := v1alpha1.ClusterNetworkSpec{PodCIDRs: []string{cidr}, AddressSource: v1alpha1.AddressesFromNodeCIDR}
		v1alpha1.Defaults(&spec)
		if err := v1alpha1.Validate(&spec); !matches(err, "pods cannot have such addresses") {
			t.Errorf("%s: %v", cidr, err)
		}
	}
}

func TestOnlyOneNetworkNamedDefault(t *testing.T) {
	err := realAPI(t).Create(t.Context(), network(t, "other", `podCIDRs: [10.244.0.0/16]`), client.DryRunAll)
	if !matches(err, "its name is default") {
		t.Errorf("the API server answered %v", err)
	}
}

func TestVXLANParametersStay(t *testing.T) {
	c := realAPI(t)
	u := network(t, "default", `podCIDRs: [10.244.0.0/16]`)
	if err := c.Create(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	defer c.Delete(context.Background(), u)
	changed := network(t, "default", `{podCIDRs: [10.244.0.0/16], transports: [vxlan], vxlan: {port: 8472}}`)
	changed.SetResourceVersion(u.GetResourceVersion())
	if err := c.Update(t.Context(), changed); !matches(err, "cannot be changed on a live network") {
		t.Errorf("a change of the port: %v", err)
	}
	changed = network(t, "default", `{podCIDRs: [10.244.0.0/16], transports: [vxlan]}`)
	changed.SetResourceVersion(u.GetResourceVersion())
	if err := c.Update(t.Context(), changed); err != nil {
		t.Errorf("a change of the transports: %v", err)
	}
}

func TestBlocksAreNamedByTheirRange(t *testing.T) {
	c := realAPI(t)
	for _, cidr := range []string{"10.244.1.64/26", "fd00:10:244::40/122", "fd00:1:2:3:4:5:6:0/122", "2001:db8::/64"} {
		b := &v1alpha1.AddressBlock{Spec: v1alpha1.AddressBlockSpec{CIDR: cidr, Node: "a", NodeUID: "u", Generation: 1}}
		b.Name = v1alpha1.BlockName(netip.MustParsePrefix(cidr))
		if err := c.Create(t.Context(), b, client.DryRunAll); err != nil {
			t.Errorf("%s as %s: %v", cidr, b.Name, err)
		}
	}
	for name, tc := range map[string]struct{ object, cidr, want string }{
		"another name":        {"a-block", "10.244.1.64/26", "the name of a lease is its CIDR"},
		"bits behind":         {"10-244-1-65-26", "10.244.1.65/26", "in its canonical form"},
		"another spelling":    {"fd00-0---64", "fd00:0::/64", "in its canonical form"},
		"capital letters":     {"fd00---64", "FD00::/64", "in its canonical form"},
		"not a CIDR":          {"x", "x", "in its canonical form"},
		"a range as a suffix": {"10-244-1-64-26-b", "10.244.1.64/26", "the name of a lease is its CIDR"},
	} {
		b := &v1alpha1.AddressBlock{Spec: v1alpha1.AddressBlockSpec{CIDR: tc.cidr, Node: "a", NodeUID: "u", Generation: 1}}
		b.Name = tc.object
		if err := c.Create(t.Context(), b, client.DryRunAll); !matches(err, tc.want) {
			t.Errorf("%s: the API server answered %v; want %q", name, err, tc.want)
		}
	}
}

func TestLeasesGoForwardOnly(t *testing.T) {
	c := realAPI(t)
	b := &v1alpha1.AddressBlock{Spec: v1alpha1.AddressBlockSpec{CIDR: "10.9.0.0/26", Node: "a", NodeUID: "u", Generation: 2}}
	b.Name = "10-9-0-0-26"
	if err := c.Create(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	defer c.Delete(context.Background(), b)
	for want, change := range map[string]func(*v1alpha1.AddressBlockSpec){
		"a lease's CIDR never changes":         func(s *v1alpha1.AddressBlockSpec) { s.CIDR = "10.9.0.64/26" },
		"a lease's generation never goes back": func(s *v1alpha1.AddressBlockSpec) { s.Generation = 1 },
		"names its node and the node's UID":    func(s *v1alpha1.AddressBlockSpec) { s.NodeUID = "" },
		"a lease names its node":               func(s *v1alpha1.AddressBlockSpec) { s.Node, s.NodeUID = "", "" },
		"is asked from never changes":          func(s *v1alpha1.AddressBlockSpec) { s.From = "b" },
		"does not become a shared block":       func(s *v1alpha1.AddressBlockSpec) { s.Node, s.NodeUID, s.Sharing = "", "", v1alpha1.SharingDeclared },
		"a shared block is no node's":          func(s *v1alpha1.AddressBlockSpec) { s.Sharing = v1alpha1.SharingDeclared },
		"keptFor are of single addresses": func(s *v1alpha1.AddressBlockSpec) {
			s.KeptFor = &v1alpha1.KeptFor{Namespace: "d", Pod: "web-0", StatefulSet: "web", UID: "u"}
		},
		"pool, from and keptFor":          func(s *v1alpha1.AddressBlockSpec) { s.Pool = "AddressPool/p" },
		"pool, from":                      func(s *v1alpha1.AddressBlockSpec) { s.From = "b" },
		"a grant is the word of":          func(s *v1alpha1.AddressBlockSpec) { s.Grant = v1alpha1.Granted },
		"spec.sharing: Unsupported value": func(s *v1alpha1.AddressBlockSpec) { s.Node, s.NodeUID, s.Sharing = "", "", "Maybe" },
	} {
		next := b.DeepCopy()
		change(&next.Spec)
		if err := c.Update(t.Context(), next); !matches(err, want) {
			t.Errorf("the API server answered %v; want %q", err, want)
		}
	}
}
