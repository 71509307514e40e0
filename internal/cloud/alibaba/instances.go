package alibaba

import (
	"context"
	"net/netip"
	"strings"

	"ropeway.dev/ropeway/internal/cloud"
)

// instances are the VPC's ECS instances.
type instances struct{ p *Provider }

// instance is one of DescribeInstances'.
type instance struct {
	ID            string `json:"InstanceId"`
	Zone          string `json:"ZoneId"`
	Type          string `json:"InstanceType"`
	Status        string
	VpcAttributes struct {
		VPC              string `json:"VpcId"`
		PrivateIPAddress struct {
			IPAddress []string `json:"IpAddress"`
		} `json:"PrivateIpAddress"`
	}
	NetworkInterfaces struct {
		NetworkInterface []instanceInterface
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

// List lists the VPC's instances. Unlike a route table's, an empty answer is
// possible and is given as it is: who asks must not take it for the end of
// nodes that were there before.
func (i instances) List(ctx context.Context) ([]cloud.Instance, error) {
	found, err := i.describe(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]cloud.Instance, 0, len(found))
	for _, in := range found {
		out = append(out, cloud.Instance{
			ID: in.ID, Addresses: in.addresses(), Zone: in.Zone, Type: in.Type, Running: in.Status == "Running",
		})
	}
	return out, nil
}

func (i instances) describe(ctx context.Context) ([]instance, error) {
	const action = "DescribeInstances"
	var all []instance
	err := pages(action, func(token string) (string, error) {
		params := map[string]string{"VpcId": i.p.vpc, "InstanceNetworkType": "vpc", "MaxResults": "100"}
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
		for _, in := range answer.Instances.Instance {
			if vpc := in.VpcAttributes.VPC; vpc == "" || vpc == i.p.vpc {
				all = append(all, in)
			}
		}
		return answer.NextToken, nil
	})
	return all, err
}

// addresses are an instance's private addresses of both families, the primary
// interface's first, each once.
func (in instance) addresses() []netip.Addr {
	texts := in.VpcAttributes.PrivateIPAddress.IPAddress
	for _, primary := range []bool{true, false} {
		for _, ni := range in.NetworkInterfaces.NetworkInterface {
			if (ni.Type == "Primary") != primary {
				continue
			}
			texts = append(texts, ni.PrimaryIPAddress)
			for _, a := range ni.PrivateIPSets.PrivateIPSet {
				texts = append(texts, a.PrivateIPAddress)
			}
			for _, a := range ni.IPv6Sets.IPv6Set {
				texts = append(texts, a.IPv6Address)
			}
		}
	}
	var out []netip.Addr
	seen := map[netip.Addr]bool{}
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil && !seen[addr] {
			seen[addr] = true
			out = append(out, addr)
		}
	}
	return out
}
