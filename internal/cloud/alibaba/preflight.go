package alibaba

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/cloud"
)

// What no entry, instance or table is called: a preflight asks to change these.
const (
	noEntry     = "rte-ropewaypreflight000"
	noInstance  = "i-ropewaypreflight00000"
	noInterface = "eni-ropewaypreflight000"
	noGroup     = "sg-ropewaypreflight000"
	// noRange is the range of the cloud's own services, which the API refuses
	// as a destination.
	noRange = "100.64.0.0/10"
)

// Actions returns the RAM actions that the duties need, those that write last.
// They are the least policy.
func Actions(d cloud.Duties) []string {
	var read, write []string
	if d.Checks() {
		read = append(read, "vpc:DescribeRouteTableList", "vpc:DescribeRouteEntryList")
	}
	if d.Checks() || d.Nodes {
		read = append(read, "ecs:DescribeInstances", "ecs:DescribeNetworkInterfaces")
	}
	if d.Checks() {
		read = append(read, "ecs:DescribeSecurityGroupAttribute") // to say why packets do not arrive (Inspect)
	}
	if d.Routes {
		write = append(write, "vpc:CreateRouteEntries", "vpc:DeleteRouteEntries", "vpc:ModifyRouteEntry")
	}
	if d.Nodes {
		write = append(write, "ecs:ModifyNetworkInterfaceAttribute")
	}
	return append(read, write...)
}

// Policy returns the least RAM policy for the duties, as the console takes it.
func Policy(d cloud.Duties) string {
	type statement struct {
		Effect   string
		Action   []string
		Resource string
	}
	text, err := json.MarshalIndent(struct {
		Version   string
		Statement []statement
	}{"1", []statement{{"Allow", Actions(d), "*"}}}, "", "  ")
	if err != nil {
		panic(err) // strings only
	}
	return string(text)
}

// Preflight finds out which of Actions the credentials may call, and changes
// nothing: the writing ones are called for an entry or interface that does not
// exist, and the creation with a destination and a next hop that the API both
// refuses. RAM answers before any of that is looked at. It may run beside a
// planner; each call takes the VPC's turn for a moment at most.
func (p *Provider) Preflight(ctx context.Context, d cloud.Duties) []cloud.Permission {
	var out []cloud.Permission
	table := ""
	if d.Checks() {
		tables, err := p.usedTables(ctx)
		// A refusal of ours (several tables, a wrong id) is an answer to the call.
		out = append(out, cloud.Permission{Action: "vpc:DescribeRouteTableList", Err: verdict(err)})
		switch {
		case err == nil:
			table = tables[0]
		case len(p.tables) > 0:
			table = p.tables[0]
		}
	}
	needed := Actions(d)
	for _, probe := range p.probes(table) {
		if !slices.Contains(needed, probe.action) {
			continue
		}
		err := error(&cloud.Error{Class: cloud.Lost, Action: bare(probe.action), Code: "ropeway.NotAsked", Message: "no route table is known to ask about"})
		if table != "" || !probe.table {
			err = verdict(probe.ask(ctx))
		}
		out = append(out, cloud.Permission{Action: probe.action, Err: err})
	}
	return out
}

// probe asks for the right to one action.
type probe struct {
	action string
	table  bool // it needs to know a table
	ask    func(ctx context.Context) error
}

func (p *Provider) probes(table string) []probe {
	write := func(action string, params map[string]string) probe {
		return probe{"vpc:" + action, true, func(ctx context.Context) error {
			var answer batchAnswer
			if err := p.call.write(ctx, vpcAPI(), action, params, &answer); err != nil {
				return err
			}
			for _, f := range answer.FailedRouteEntries {
				return &cloud.Error{Class: classify(f.Code, 0), Action: action, Code: f.Code, Message: f.Message, Request: answer.RequestID}
			}
			return nil
		}}
	}
	ecs := func(action string, params map[string]string, call func(context.Context, product, string, map[string]string, any) error) probe {
		return probe{"ecs:" + action, false, func(ctx context.Context) error {
			var answer struct{}
			return call(ctx, ecsAPI(), action, params, &answer)
		}}
	}
	return []probe{
		{"vpc:DescribeRouteEntryList", true, func(ctx context.Context) error {
			var answer struct{}
			return p.call.read(ctx, vpcAPI(), "DescribeRouteEntryList", map[string]string{"RouteTableId": table, "MaxResult": "1"}, &answer)
		}},
		ecs("DescribeInstances", map[string]string{"VpcId": p.vpc, "MaxResults": "10"}, p.call.read),
		ecs("DescribeNetworkInterfaces", map[string]string{"VpcId": p.vpc, "MaxResults": "10"}, p.call.read),
		ecs("DescribeSecurityGroupAttribute", map[string]string{"SecurityGroupId": noGroup, "Direction": "ingress"}, p.call.read),
		write("CreateRouteEntries", map[string]string{
			"RouteEntries.1.RouteTableId": table, "RouteEntries.1.DstCidrBlock": noRange,
			"RouteEntries.1.NextHop": noInstance, "RouteEntries.1.NextHopType": hopInstance,
		}),
		write("DeleteRouteEntries", map[string]string{"RouteEntries.1.RouteTableId": table, "RouteEntries.1.RouteEntryId": noEntry}),
		write("ModifyRouteEntry", map[string]string{"RouteEntryId": noEntry, "Description": "ropeway preflight", "DryRun": "true"}),
		ecs("ModifyNetworkInterfaceAttribute", map[string]string{"NetworkInterfaceId": noInterface, "SourceDestCheck": "false"}, p.call.write),
	}
}

// verdict keeps of an answer what it says about rights: any other refusal comes
// from behind RAM.
func verdict(err error) error {
	if cloud.Is(err, cloud.Passing) && cloud.CodeOf(err) == "" {
		return err // nothing was asked
	}
	if cloud.Is(err, cloud.Forbidden, cloud.Unauthenticated, cloud.Lost, cloud.Unreachable, cloud.Throttled) {
		return err
	}
	return nil
}

// bare is an action without its product.
func bare(action string) string {
	_, name, _ := strings.Cut(action, ":")
	return name
}
