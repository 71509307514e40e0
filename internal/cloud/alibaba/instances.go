package alibaba

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/few"
)

// Node labels of the vendor's cloud controller manager, and the tag that its
// managed clusters put on their instances.
const (
	labelChargeType   = "node.alibabacloud.com/instance-charge-type"
	labelSpotStrategy = "node.alibabacloud.com/spot-strategy"
	labelNodePool     = "node.alibabacloud.com/nodepool-id"
	tagNodePool       = "ack.alibabacloud.com/nodepool-id"
)

// instances are the VPC's ECS instances.
type instances struct{ p *Provider }

// instance is one of DescribeInstances'.
type instance struct {
	ID            string `json:"InstanceId"`
	Host          string `json:"HostName"`
	Region        string `json:"RegionId"`
	Zone          string `json:"ZoneId"`
	Type          string `json:"InstanceType"`
	Status        string
	ChargeType    string `json:"InstanceChargeType"`
	SpotStrategy  string
	VpcAttributes struct {
		VPC              string `json:"VpcId"`
		PrivateIPAddress struct {
			IPAddress []string `json:"IpAddress"`
		} `json:"PrivateIpAddress"`
	}
	PublicIPAddress struct {
		IPAddress []string `json:"IpAddress"`
	} `json:"PublicIpAddress"`
	EIPAddress struct {
		IPAddress string `json:"IpAddress"`
	} `json:"EipAddress"`
	NetworkInterfaces struct {
		NetworkInterface []instanceInterface
	}
	Tags struct {
		Tag []struct{ TagKey, TagValue string }
	}
}

type instanceInterface struct {
	ID               string `json:"NetworkInterfaceId"`
	Type             string // Primary or Secondary
	PrimaryIPAddress string `json:"PrimaryIpAddress"`
	PrivateIPSets    struct {
		PrivateIPSet []struct {
			PrivateIPAddress string `json:"PrivateIpAddress"`
		} `json:"PrivateIpSet"`
	} `json:"PrivateIpSets"`
	IPv6Sets struct {
		IPv6Set []struct {
			IPv6Address string `json:"Ipv6Address"`
		} `json:"Ipv6Set"`
	} `json:"Ipv6Sets"`
}

// Parse reads <region>.<instance>, with or without alicloud:// in front. An
// instance of another region is not one of this VPC.
func (i instances) Parse(providerID string) (string, bool) {
	rest := strings.TrimPrefix(providerID, "alicloud://")
	region, id, ok := strings.Cut(rest, ".")
	if !ok || region != i.p.call.region || id == "" || strings.ContainsAny(id, "/:. ") {
		return "", false
	}
	return id, true
}

// ProviderID is <region>.<instance>, as the vendor's documents have it.
func (i instances) ProviderID(instance string) string { return i.p.call.region + "." + instance }

// List lists the VPC's instances. Unlike a route table's, an empty answer is
// possible and is given as it is: who asks must not take it for the end of
// nodes that were there before.
func (i instances) List(ctx context.Context) ([]cloud.Instance, error) {
	found, err := i.describe(ctx)
	return inOurWords(found), err
}

// Describe asks by id, without a filter that could hide an instance. Ids that
// the API does not know are no error of it.
func (i instances) Describe(ctx context.Context, ids []string) ([]cloud.Instance, error) {
	found, err := i.byID(ctx, ids)
	return inOurWords(found), err
}

// byID is Describe in the API's words.
func (i instances) byID(ctx context.Context, ids []string) ([]instance, error) {
	const action = "DescribeInstances"
	if len(ids) == 0 {
		return nil, nil
	}
	if len(ids) > cloud.MaxDescribe {
		return nil, &cloud.Error{Class: cloud.Permanent, Action: action, Code: "InvalidParameter", Message: fmt.Sprintf("%d instances; %d are the most", len(ids), cloud.MaxDescribe)}
	}
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, &cloud.Error{Class: cloud.Permanent, Action: action, Err: err}
	}
	found, err := i.pages(ctx, map[string]string{"InstanceIds": string(list)})
	// An API that does not know the parameter would answer with everything.
	return slices.DeleteFunc(found, func(in instance) bool { return !slices.Contains(ids, in.ID) }), err
}

// describe asks for the VPC's instances.
func (i instances) describe(ctx context.Context) ([]instance, error) {
	all, err := i.pages(ctx, map[string]string{"VpcId": i.p.vpc, "InstanceNetworkType": "vpc"})
	return slices.DeleteFunc(all, func(in instance) bool {
		return in.VpcAttributes.VPC != "" && in.VpcAttributes.VPC != i.p.vpc
	}), err
}

func (i instances) pages(ctx context.Context, filter map[string]string) ([]instance, error) {
	const action = "DescribeInstances"
	var all []instance
	err := pages(action, func(token string) (string, error) {
		params := maps.Clone(filter)
		params["MaxResults"] = "100"
		if token != "" {
			params["NextToken"] = token
		}
		var answer struct {
			NextToken string
			Instances struct{ Instance []instance }
		}
		if err := i.p.call.read(ctx, ecsAPI(), action, params, &answer); err != nil {
			return "", err
		}
		all = append(all, answer.Instances.Instance...)
		return answer.NextToken, nil
	})
	if err != nil {
		return nil, err // rather than a part
	}
	return all, nil
}

func inOurWords(found []instance) []cloud.Instance {
	out := make([]cloud.Instance, 0, len(found))
	for _, in := range found {
		addresses, primary := in.addresses()
		out = append(out, cloud.Instance{
			ID: in.ID, Host: in.Host, Addresses: addresses, Primary: primary, Public: in.public(), Interface: in.primary().ID,
			VPC: in.VpcAttributes.VPC, Region: in.Region, Zone: in.Zone, Type: in.Type, Labels: in.labels(),
			Running: in.Status == "Running", Stopped: in.Status == "Stopped",
		})
	}
	return out
}

// labels are those of the vendor's controller, where there is a value.
func (in instance) labels() map[string]string {
	out := map[string]string{labelChargeType: in.ChargeType, labelSpotStrategy: in.SpotStrategy}
	for _, tag := range in.Tags.Tag {
		if tag.TagKey == tagNodePool {
			out[labelNodePool] = tag.TagValue
		}
	}
	maps.DeleteFunc(out, func(_, value string) bool { return value == "" })
	return out
}

func (in instance) public() []netip.Addr {
	var out []netip.Addr
	for _, text := range append(slices.Clone(in.PublicIPAddress.IPAddress), in.EIPAddress.IPAddress) {
		if addr, err := netip.ParseAddr(text); err == nil && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// primary is the primary interface, empty if the answer has none.
func (in instance) primary() instanceInterface {
	for _, ni := range in.NetworkInterfaces.NetworkInterface {
		if ni.Type == "Primary" {
			return ni
		}
	}
	return instanceInterface{}
}

func (ni instanceInterface) texts() []string {
	out := []string{ni.PrimaryIPAddress}
	for _, a := range ni.PrivateIPSets.PrivateIPSet {
		out = append(out, a.PrivateIPAddress)
	}
	for _, a := range ni.IPv6Sets.IPv6Set {
		out = append(out, a.IPv6Address)
	}
	return out
}

// addresses are an instance's private addresses of both families, the primary
// interface's first, each once; primary is how many those are.
func (in instance) addresses() (all []netip.Addr, primary int) {
	add := func(texts []string) {
		for _, text := range texts {
			if addr, err := netip.ParseAddr(text); err == nil && !slices.Contains(all, addr) {
				all = append(all, addr)
			}
		}
	}
	add(append(slices.Clone(in.VpcAttributes.PrivateIPAddress.IPAddress), in.primary().texts()...))
	primary = len(all)
	for _, ni := range in.NetworkInterfaces.NetworkInterface {
		add(ni.texts())
	}
	return all, primary
}

// AllowForwarding switches off SourceDestCheck where it is on. What fails for one
// instance is tried for the others all the same, unless they would meet the same.
func (i instances) AllowForwarding(ctx context.Context, of []cloud.Instance) ([]string, error) {
	checked, err := i.checked(ctx, of)
	if err != nil {
		return nil, err
	}
	var changed []string
	var errs []error
	for _, in := range of {
		if !checked[in.Interface] {
			continue
		}
		var answer struct{}
		params := map[string]string{"NetworkInterfaceId": in.Interface, "SourceDestCheck": "false"}
		err := i.p.call.write(ctx, ecsAPI(), "ModifyNetworkInterfaceAttribute", params, &answer)
		if err == nil {
			changed = append(changed, in.ID)
			continue
		}
		errs = append(errs, fmt.Errorf("interface %s of instance %s: %w", in.Interface, in.ID, err))
		if len(errs) > len(changed)+few.Most || ctx.Err() != nil || cloud.Is(err, cloud.Throttled, cloud.Unreachable, cloud.Unauthenticated) {
			break
		}
	}
	return changed, few.Errors(errs...)
}

// checked returns which of the instances' primary interfaces check source and
// destination.
func (i instances) checked(ctx context.Context, of []cloud.Instance) (map[string]bool, error) {
	ids := make([]string, 0, len(of))
	for _, in := range of {
		ids = append(ids, in.Interface)
	}
	found, err := i.p.describeInterfaces(ctx, ids)
	out := map[string]bool{}
	for _, ni := range found {
		out[ni.ID] = ni.SourceDestCheck
	}
	return out, err
}
